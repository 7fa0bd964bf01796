//! Grades generated text: finds the final answer, compares it with the expected one, and gives scores their intervals.
//!
//! Nothing here trains, draws or reads files. [`grade`] offers several graders side by side, because published scores depend
//! on the rule as much as on the model:
//!
//! ```
//! use sorsa_grading::grade::{Grader, Score};
//!
//! let solution = "Natalia sold 48 / 2 = 24 clips in May, and 72 altogether.\n#### 72";
//! let generated = ["She sold 48 + 24 clips.\nThe answer is: 72.4", "The answer is: 72.0", "I do not know."];
//! let right = |grader: Grader| Score::of(&generated.map(|text| grader.grade(solution, text))).correct.successes;
//!
//! assert_eq!(right(Grader::Author), 2); // rounds before it compares
//! assert_eq!(right(Grader::Faithful), 1); // 72.0 is 72
//! assert_eq!(right(Grader::Strict), 0); // the strings differ
//! ```

mod algebra;
pub mod answer;
mod author;
pub mod code;
pub mod comparison;
mod error;
mod faithful;
pub mod grade;
mod latex;
pub mod number;
mod reading;
pub mod significance;
pub mod stats;

pub use error::GradingError;
pub use faithful::same_answer;
