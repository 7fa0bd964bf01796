//! Counts the processes of a program and adds up their memory, which limits of single processes do not bound. Reads Linux's `/proc`;
//! elsewhere it finds nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// More processes than this are too many.
pub const PROCESSES: usize = 32;

/// The processes that one child has started, as far as they were seen.
#[derive(Debug)]
pub struct Watch {
    child: u32,
    /// Process and the time of its start, so that another of the same number is not taken for it.
    seen: BTreeMap<u32, u64>,
}

impl Watch {
    /// Of a child and all below it.
    pub fn new(child: u32) -> Self {
        Self { child, seen: BTreeMap::new() }
    }

    /// Looks for processes, and adds their memory: writable private pages, those of their stacks too.
    pub fn look(&mut self) -> (usize, u64) {
        let known = self.seen.iter().filter(|&(&process, &start)| start_time(process) == Some(start));
        let mut open: Vec<u32> = known.map(|(&process, _)| process).chain([self.child]).collect();
        let (mut found, mut bytes) = (BTreeMap::new(), 0);
        while let Some(process) = open.pop() {
            if found.contains_key(&process) || found.len() > 64 * PROCESSES {
                continue;
            }
            let Some(start) = start_time(process) else { continue };
            found.insert(process, start);
            bytes += memory(process);
            open.extend(children(process));
        }
        self.seen = found;
        (self.seen.len(), bytes)
    }

    /// The processes of the last look.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        self.seen.keys().copied()
    }
}

/// Processes that work in a folder or below it, wherever they come from.
pub fn processes_in(folder: &Path) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let working =
        processes.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder)));
    working.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The threads of all processes of this process's user; `None` for root, which no limit of processes holds.
pub fn threads_of_user() -> Option<u64> {
    let user = fs::metadata("/proc/self").ok()?.uid();
    if user == 0 {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let own = processes.filter(|entry| entry.metadata().is_ok_and(|found| found.uid() == user));
    Some(own.filter_map(|entry| status_field(&entry.path().join("status"), "Threads:")).sum())
}

fn start_time(process: u32) -> Option<u64> {
    let text = fs::read(format!("/proc/{process}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The second field, the name, is in brackets and may hold anything; the start is the twenty-second.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn memory(process: u32) -> u64 {
    let path = format!("/proc/{process}/status");
    let kilobytes = |name| status_field(Path::new(&path), name).unwrap_or(0);
    1024 * (kilobytes("VmData:") + kilobytes("VmStk:"))
}

fn status_field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text);
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

fn children(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>())
        .collect()
}
