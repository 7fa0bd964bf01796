//! The rules of the workspace that a compiler does not know: `docs/architecture.md`, as tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{Metadata, MetadataCommand, Package};
use toml::{Table, Value};

const LINALG_OPS: &[&str] = &["sorsa-linalg", "sorsa-ops"];
const BELOW_MODELS: &[&str] = &["sorsa-linalg", "sorsa-ops", "sorsa-adapter"];
const BELOW_TRAIN: &[&str] = &["sorsa-linalg", "sorsa-ops", "sorsa-adapter", "sorsa-models", "sorsa-data"];
const BELOW_EXPERIMENT: &[&str] = &[
    "sorsa-linalg",
    "sorsa-ops",
    "sorsa-adapter",
    "sorsa-models",
    "sorsa-data",
    "sorsa-train",
    "sorsa-grading",
    "sorsa-report",
];

/// Whom each library may import: those to its left in the drawing of `docs/architecture.md`.
const LIBRARIES: [(&str, &[&str]); 9] = [
    ("sorsa-linalg", &[]),
    ("sorsa-ops", &[]),
    ("sorsa-data", &[]),
    ("sorsa-adapter", LINALG_OPS),
    ("sorsa-models", BELOW_MODELS),
    ("sorsa-train", BELOW_TRAIN),
    ("sorsa-grading", &[]),
    ("sorsa-report", &["sorsa-grading"]),
    ("sorsa-experiment", BELOW_EXPERIMENT),
];

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

/// The members of the workspace that `package` names, in any kind of dependency.
fn members_named_by(metadata: &Metadata, package: &Package) -> BTreeSet<String> {
    let members: BTreeSet<&str> = metadata.packages.iter().map(|member| member.name.as_str()).collect();
    package.dependencies.iter().map(|d| d.name.clone()).filter(|name| members.contains(name.as_str())).collect()
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
    LIBRARIES.iter().flat_map(|(name, _)| sources(&format!("crates/{name}/src"))).collect()
}

#[test]
fn a_crate_imports_only_those_below_it() {
    let metadata = metadata();
    for (name, allowed) in LIBRARIES {
        let allowed: BTreeSet<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        let named = members_named_by(&metadata, package(&metadata, name));
        assert!(named.is_subset(&allowed), "{name} imports {:?}", named.difference(&allowed));
    }
    let placed: BTreeSet<&str> =
        LIBRARIES.iter().map(|(name, _)| *name).chain(["sorsa-cli", "sorsa-tests", "xtask"]).collect();
    let members: BTreeSet<&str> = metadata.packages.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(members, placed, "a package without a place in the drawing");
}

#[test]
fn xtask_depends_on_nothing() {
    assert!(package(&metadata(), "xtask").dependencies.is_empty());
}

#[test]
fn ops_knows_burn_and_what_its_cpu_kernels_are_made_of() {
    let metadata = metadata();
    let normal = package(&metadata, "sorsa-ops").dependencies.iter().filter(|d| d.kind == Default::default());
    assert_eq!(normal.map(|d| d.name.as_str()).collect::<Vec<_>>(), ["burn", "gemm", "pulp", "rayon"]);
}

#[test]
fn data_never_reaches_burn() {
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
    let mut reached = BTreeSet::new();
    let mut open = vec!["sorsa-data"];
    while let Some(name) = open.pop() {
        if reached.insert(name) {
            open.extend(&dependencies[name]);
        }
    }
    assert!(reached.contains("serde"), "{reached:?}");
    assert!(!reached.iter().any(|name| name.starts_with("burn")), "{reached:?}");
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
