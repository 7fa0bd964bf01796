//! What is done about damaged files of a run that is resumed.

use std::fmt;
use std::path::PathBuf;

use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::metrics::LogRepair;

/// A file of a run that is resumed was damaged, and the run goes on without it. `Display` says what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// A checkpoint is not what was written: the run goes on from the one before.
    Checkpoint {
        /// The checkpoint's new name.
        folder: PathBuf,
        /// Its step.
        step: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Lines of the log are missing or damaged.
    Log {
        /// The log.
        path: PathBuf,
        /// The step that the run goes on from.
        step: u64,
        /// What is wrong with it.
        repair: LogRepair,
    },
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint { folder, step, reason } => write!(
                f,
                "{reason}; the run goes on from a checkpoint before step {step}, and the damaged one is now {}",
                folder.display()
            ),
            Self::Log { path, step, repair } => {
                let path = path.display();
                if repair.missing {
                    return write!(f, "{path} is missing: it begins again after step {step}");
                }
                match repair.damaged_lines {
                    0 => {}
                    1 => write!(f, "{path}: one line that was cut short or damaged is removed")?,
                    lines => write!(f, "{path}: {lines} damaged lines are removed")?,
                }
                let missing = &repair.missing_steps;
                if missing.is_empty() {
                    return Ok(());
                }
                let separator = if repair.damaged_lines > 0 { "; it" } else { "" };
                let shown: Vec<String> = missing.iter().take(5).map(u64::to_string).collect();
                let more = match missing.len().saturating_sub(5) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                if repair.damaged_lines == 0 {
                    write!(f, "{path}")?;
                }
                write!(f, "{separator} has no line for step {}{more}", shown.join(", "))
            }
        }
    }
}

/// The newest checkpoint that is what was written; damaged ones are set aside. `None` if the run has no checkpoint.
pub(crate) fn newest_whole(
    checkpoints: &Checkpoints,
    repairs: &mut Vec<Repair>,
) -> Result<Option<u64>, CheckpointError> {
    let steps = checkpoints.steps();
    let (mut damaged, mut whole) = (Vec::new(), None);
    for step in steps.iter().rev() {
        match checkpoints.verify(*step).and_then(|()| checkpoints.load(*step)) {
            Ok(_) => {
                whole = Some(*step);
                break;
            }
            // Earlier builds wrote parameters that are not finite.
            Err(error @ (CheckpointError::Damaged { .. } | CheckpointError::NotFinite { .. })) => {
                damaged.push((*step, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    if whole.is_none()
        && let Some((_, reason)) = damaged.first()
    {
        return Err(CheckpointError::AllDamaged { folder: checkpoints.folder().to_owned(), reason: reason.clone() });
    }
    for (step, reason) in damaged {
        let folder = checkpoints.set_aside(step)?;
        repairs.push(Repair::Checkpoint { folder, step, reason });
    }
    Ok(whole)
}
