//! The real binary in a folder of its own, with a tiny model and a few rows of data.

#![allow(dead_code, reason = "every file of tests uses a part of it")]

pub mod process;

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder that holds `model/` and `data.jsonl`; the binary runs in it.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// With a freshly initialised model of two blocks and 60 problems.
    pub fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.make_model("model", 0);
        let rows = std::fs::read_to_string(datasets().join("arithmetic/train.jsonl")).unwrap();
        let rows: Vec<&str> = rows.lines().take(60).collect();
        place.write("data.jsonl", rows.join("\n") + "\n");
        place
    }

    /// A model of two blocks with weights drawn from `seed`.
    pub fn make_model(&self, name: &str, seed: u64) {
        self.command(&["pretrain", "--init-only", "--out", name, "--layers", "2", "--hidden-size", "32"])
            .args(["--intermediate-size", "48", "--heads", "2", "--kv-heads", "1", "--quiet", "--tokenizer"])
            .arg(datasets().join("base"))
            .args(["--seed", &seed.to_string()])
            .succeed();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// The binary with its home, caches and working folder here.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sorsa"));
        command.current_dir(self.folder.path()).args(args);
        for variable in ["HOME", "XDG_CACHE_HOME", "HF_HOME"] {
            command.env(variable, self.folder.path());
        }
        command.env_remove("HF_ENDPOINT").env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN");
        command
    }

    /// Runs a fine-tune of the tiny model, quietly.
    pub fn finetune(&self, args: &[&str]) -> Command {
        let mut command = self.command(&["finetune", "--model", "model", "--data", "data.jsonl", "--quiet"]);
        command.args(["--rank", "4", "--batch-size", "4", "--set", "data.validation_rows=4"]).args(args);
        command
    }
}

/// Commands that are expected to work.
pub trait Succeed {
    /// Runs to the end; what was printed on standard output.
    fn succeed(&mut self) -> String;
}

impl Succeed for Command {
    #[track_caller]
    fn succeed(&mut self) -> String {
        let output = self.output().unwrap();
        assert!(output.status.success(), "{self:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// `datasets/` of this repository.
pub fn datasets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets")
}
