//! The rules of the workspace that a compiler does not know: `docs/architecture.md`, as tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use toml::{Table, Value};

const LONGEST_FILE: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn toml(path: impl AsRef<Path>) -> Table {
    read(path).parse().unwrap()
}

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap()
}

fn package<'a>(metadata: &'a Metadata, name: &str) -> &'a Package {
    metadata.packages.iter().find(|package| package.name == name).unwrap_or_else(|| panic!("no package {name}"))
}

/// The members of the workspace that `package` names in dependencies of a kind.
fn members_named_by(metadata: &Metadata, package: &Package, kind: DependencyKind) -> BTreeSet<String> {
    let members: BTreeSet<&str> = metadata.packages.iter().map(|member| member.name.as_str()).collect();
    let named = package.dependencies.iter().filter(|dependency| dependency.kind == kind).map(|d| d.name.clone());
    named.filter(|name| members.contains(name.as_str())).collect()
}

/// The lines of the drawing in `docs/architecture.md`, from the bottom up: each library with those that it imports.
fn drawing() -> Vec<(String, BTreeSet<String>)> {
    let page = read("docs/architecture.md");
    let (_, section) = page.split_once("\n## Who imports whom\n").expect("a section with the drawing");
    let block = section.split("```").nth(1).expect("a drawing between fences");
    let full = |name: &str| format!("sorsa-{}", name.trim());
    let lines = block.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| match line.split_once("<-") {
            Some((name, imports)) => (full(name), imports.split(',').map(full).collect()),
            None => (full(line), BTreeSet::new()),
        })
        .collect()
}

/// The crates that `docs/architecture.md` promises to be free of burn.
fn without_burn() -> Vec<String> {
    let page = read("docs/architecture.md");
    let line = page.lines().find_map(|line| line.strip_prefix("Without burn: ")).expect("a line `Without burn: ..`");
    line.split(['`', ',', '.', ' ']).filter(|name| !name.is_empty()).map(|name| format!("sorsa-{name}")).collect()
}

/// Every Rust file under `folder`, which is relative to the root.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The lines of a file that are compiled into the library, numbered from 1: neither comments nor items under `cfg(test)`.
fn code(path: &Path) -> Vec<(usize, String)> {
    let mut in_test = false;
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(read(path).lines()) {
        in_test |= line == "#[cfg(test)]";
        if !in_test && !line.trim_start().starts_with("//") {
            lines.push((number, line.to_owned()));
        }
        // `cargo fmt` closes an item of a file, and nothing within one, in the first column.
        in_test &= !(line.starts_with('}') || (line.ends_with(';') && !line.starts_with(' ')));
    }
    lines
}

/// The places in `files` whose code contains one of `words`.
fn places(files: &[PathBuf], words: &[&str]) -> Vec<String> {
    let in_file = |path: &PathBuf| {
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        code(path)
            .into_iter()
            .filter(|(_, line)| words.iter().any(|word| line.contains(word)))
            .map(|(number, line)| format!("{shown}:{number}: {}", line.trim()))
            .collect::<Vec<_>>()
    };
    files.iter().filter(|path| !path.ends_with("tests.rs")).flat_map(in_file).collect()
}

fn library_sources() -> Vec<PathBuf> {
    drawing().iter().flat_map(|(name, _)| sources(&format!("crates/{name}/src"))).collect()
}

#[test]
fn the_crates_import_what_the_drawing_says() {
    let metadata = metadata();
    let drawing = drawing();
    for (index, (name, drawn)) in drawing.iter().enumerate() {
        let package = package(&metadata, name);
        assert_eq!(&members_named_by(&metadata, package, DependencyKind::Normal), drawn, "{name}");
        let below: BTreeSet<String> = drawing[..index].iter().map(|(name, _)| name.clone()).collect();
        for kind in [DependencyKind::Normal, DependencyKind::Development, DependencyKind::Build] {
            let named = members_named_by(&metadata, package, kind);
            assert!(named.is_subset(&below), "{name} imports {:?} above it", named.difference(&below));
        }
    }
    let placed: BTreeSet<&str> =
        drawing.iter().map(|(name, _)| name.as_str()).chain(["sorsa-cli", "sorsa-tests", "xtask"]).collect();
    let members: BTreeSet<&str> = metadata.packages.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(members, placed, "a package without a place in the drawing");
}

#[test]
fn xtask_depends_on_nothing() {
    assert!(package(&metadata(), "xtask").dependencies.is_empty());
}

#[test]
fn kernels_know_no_burn_and_ops_multiplies_through_kernels_alone() {
    let metadata = metadata();
    let normal = |name: &str| -> Vec<String> {
        let dependencies = package(&metadata, name).dependencies.iter().filter(|d| d.kind == Default::default());
        dependencies.map(|d| d.name.clone()).collect()
    };
    assert_eq!(normal("sorsa-kernels"), ["bytes", "gemm", "half", "pulp", "rayon", "serde", "thiserror"]);
    assert_eq!(normal("sorsa-ops"), ["burn", "rayon", "sorsa-kernels"]);
}

#[test]
fn the_crates_without_burn_never_reach_it() {
    let lock = toml("Cargo.lock");
    let dependencies: BTreeMap<&str, Vec<&str>> = lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let names = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
            let names = names.map(|entry| entry.as_str().unwrap().split(' ').next().unwrap());
            (package["name"].as_str().unwrap(), names.collect())
        })
        .collect();
    let free = without_burn();
    assert!(free.len() >= 5, "{free:?}");
    for name in &free {
        let mut reached = BTreeSet::new();
        let mut open = vec![name.as_str()];
        while let Some(name) = open.pop() {
            if reached.insert(name) {
                open.extend(&dependencies[name]);
            }
        }
        assert!(reached.len() > 3, "{reached:?}");
        assert!(!reached.iter().any(|name| name.starts_with("burn")), "{name} reaches {reached:?}");
    }
}

#[test]
fn every_dependency_is_declared_once_at_the_root() {
    let mut own_versions = Vec::new();
    for member in &metadata().packages {
        let manifest = toml(&member.manifest_path);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in manifest.get(section).and_then(Value::as_table).into_iter().flatten() {
                if value.get("workspace").and_then(Value::as_bool) != Some(true) {
                    own_versions.push(format!("{}: {name}", member.name));
                }
            }
        }
    }
    assert!(own_versions.is_empty(), "not from [workspace.dependencies]: {own_versions:?}");
}

#[test]
fn burn_is_pinned_and_the_lock_file_agrees() {
    let burn = &toml("Cargo.toml")["workspace"]["dependencies"]["burn"];
    assert_eq!(burn["version"].as_str(), Some("=0.22.1"));
    let lock = toml("Cargo.lock");
    let locked = lock["package"].as_array().unwrap().iter().filter(|package| package["name"].as_str() == Some("burn"));
    assert_eq!(locked.map(|package| package["version"].as_str()).collect::<Vec<_>>(), [Some("0.22.1")]);
    let ignored = Command::new("git").args(["check-ignore", "--quiet", "Cargo.lock"]).current_dir(root()).status();
    assert!(!ignored.is_ok_and(|status| status.success()), "Cargo.lock is ignored by git");
}

#[test]
fn no_library_prints_or_reads_the_environment() {
    let words = ["println!", "eprintln!", "print!(", "eprint!(", "dbg!", "std::env", "env::var", "env::args"];
    let found = places(&library_sources(), &words);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn only_device_rs_names_a_backend() {
    let mut files = library_sources();
    files.extend(sources("crates/sorsa-cli/src").into_iter().filter(|path| !path.ends_with("src/device.rs")));
    let words = [
        "Device::default()",
        "DeviceType::",
        "Device::enumerate",
        "Device::flex",
        "Device::wgpu",
        "Device::vulkan",
        "Device::metal",
        "Device::cuda",
        "Device::rocm",
        "Device::cpu",
    ];
    let found = places(&files, &words);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
    // The search itself works: the one file that may name backends does.
    assert!(!places(&[root().join("crates/sorsa-cli/src/device.rs")], &words).is_empty());
}

/// The files that may name single methods: the method's own, the list, a format of one method's files, and defaults.
const NAME_METHODS: [&str; 8] = [
    "crates/sorsa-adapter/src/methods/",
    // The default recipe, whose method is SORSA.
    "crates/sorsa-experiment/src/recipe.rs",
    // Training from scratch trains all weights.
    "crates/sorsa-cli/src/commands/pretrain.rs",
    // Partial fine-tuning's targets are all linear layers that patterns match.
    "crates/sorsa-experiment/src/analysis/run.rs",
    "crates/sorsa-experiment/src/conversion/mod.rs",
    // Gradients of whole weights are those of partial fine-tuning.
    "crates/sorsa-train/src/weight_gradients.rs",
    // The step that `bench --speed` measures is LoRA's, unless told otherwise.
    "crates/sorsa-cli/src/speed/",
    // The arms of a comparison that names none.
    "crates/sorsa-experiment/src/comparison/defaults.rs",
];

#[test]
fn a_method_is_named_in_its_own_file_and_in_lists_of_defaults_alone() {
    let mut files = library_sources();
    files.extend(sources("crates/sorsa-cli/src"));
    let words = ["Sorsa", "Pissa", "Lora", "Dora", "Olora", "Partial", "Full"].map(|name| format!("Method::{name}"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (may, may_not): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| {
        let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        NAME_METHODS.iter().any(|place| path.starts_with(place))
    });
    let found = places(&may_not, &words);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
    // The search itself works: the files that may name methods do.
    assert!(!places(&may, &words).is_empty());
}

#[test]
fn a_family_is_named_in_its_own_file_alone() {
    let files = library_sources().into_iter().chain(sources("crates/sorsa-cli/src"));
    // GGUF and Transformers name tokenizers after families too, and two commands make a Llama of their own.
    let places_that_may = [
        "sorsa-checkpoint/src/families/",
        "sorsa-checkpoint/src/gguf/tokenizer/",
        "sorsa-data/src/tokenizer/class.rs",
        "sorsa-cli/src/commands/pretrain.rs",
        "sorsa-cli/src/speed/args.rs",
    ];
    let outside = files.filter(|path| !places_that_may.iter().any(|place| path.to_string_lossy().contains(place)));
    let words = ["\"llama\"", "\"mistral\"", "\"qwen2\"", "\"qwen3\"", "\"gemma2\"", "\"gemma3_text\"", "\"phi3\""];
    let found = places(&outside.collect::<Vec<_>>(), &words);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn no_file_outgrows_a_reader() {
    let folders = ["crates", "xtask", "tests"];
    let long: Vec<String> = folders
        .iter()
        .flat_map(|folder| sources(folder))
        .map(|path| (read(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > LONGEST_FILE)
        .map(|(lines, path)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "look for the second concept in {long:?}");
}

#[test]
fn the_top_level_folder_holds_what_belongs_there() {
    let belongs = ["Cargo.toml", "Cargo.lock", "README.md", "LICENSE", "crates", "xtask", "datasets", "tests", "docs"];
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8(output.stdout).unwrap());
    let there: BTreeSet<String> = match listed {
        Some(files) => files.lines().map(|file| file.split('/').next().unwrap().to_owned()).collect(),
        // Not a checkout: an unpacked archive, perhaps with what cargo built in it.
        None => fs::read_dir(root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "target")
            .collect(),
    };
    let strays: Vec<_> =
        there.iter().filter(|name| !name.starts_with('.') && !belongs.contains(&name.as_str())).collect();
    assert!(strays.is_empty(), "{strays:?}");
    let missing: Vec<_> = belongs.iter().filter(|name| !there.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn each_dependency_has_its_reason_in_the_architecture_page() {
    let manifest = toml("Cargo.toml");
    let declared: BTreeSet<&str> = manifest["workspace"]["dependencies"]
        .as_table()
        .unwrap()
        .iter()
        .filter(|(_, value)| value.get("path").is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    let page = read("docs/architecture.md");
    let (_, section) = page.split_once("\n## Dependencies\n").expect("a section named Dependencies");
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    for row in &rows {
        assert!(row.len() == 3 && row.iter().all(|cell| !cell.is_empty()), "name, use, what was rejected: {row:?}");
    }
    let explained: BTreeSet<&str> =
        rows.iter().flat_map(|row| row[0].split(", ")).map(|n| n.trim_matches('`')).collect();
    assert_eq!(declared, explained, "declared in Cargo.toml, and explained in docs/architecture.md");
}
