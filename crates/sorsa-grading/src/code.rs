//! Makes the programs that test completions of HumanEval (Chen et al. 2021, arXiv 2107.03374). Nothing here runs any.

/// What ends a function's body, when a model writes on after it.
const ENDS: [&str; 7] = ["\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```"];

/// The source that defines `entry_point`, by a prompt and its completion.
///
/// A completion whose first line is indented continues the body that `prompt` begins, and ends with it: a base model may write
/// more, the same problem again say, which does not count. Of any other completion the first fenced block counts, if there is
/// one (a chat model's answer). If it defines `entry_point` anew, it stands after `prompt`, and may use its imports and other
/// functions.
///
/// ```
/// let source = sorsa_grading::code::function("def one():\n", "    return 1\nprint(one())", "one");
/// assert_eq!(source, "def one():\n    return 1");
/// ```
pub fn function(prompt: &str, completion: &str, entry_point: &str) -> String {
    let code = if is_body(completion) { completion } else { fenced(completion).unwrap_or(completion) };
    let function = if !is_body(code) && defines(code, entry_point) {
        // The prompt's own function may have no body yet.
        format!("{}\n    pass\n\n{code}", prompt.trim_end())
    } else {
        let end = ENDS.iter().filter_map(|end| code.find(end)).min().unwrap_or(code.len());
        format!("{prompt}{}", &code[..end])
    };
    function.trim_end().to_owned()
}

/// The program that tests a completion in one process: the [`function`], the problem's tests, and the call `check(entry_point)`.
///
/// ```
/// let program = sorsa_grading::code::program("def one():\n", "    return 1\nprint(one())", "def check(f):\n    assert f() == 1", "one");
/// assert_eq!(program, "def one():\n    return 1\n\ndef check(f):\n    assert f() == 1\n\ncheck(one)\n");
/// ```
pub fn program(prompt: &str, completion: &str, test: &str, entry_point: &str) -> String {
    format!("{}\n\n{}\n\ncheck({entry_point})\n", function(prompt, completion, entry_point), test.trim())
}

/// Whether the first line is indented, and no fence.
fn is_body(code: &str) -> bool {
    let first = code.lines().find(|line| !line.trim().is_empty());
    first.is_some_and(|line| line.starts_with([' ', '\t']) && !line.trim_start().starts_with("```"))
}

fn defines(code: &str, function: &str) -> bool {
    let mut rests = code.lines().filter_map(|line| line.strip_prefix("def ")?.strip_prefix(function));
    rests.any(|rest| rest.starts_with('('))
}

/// The first block between lines of three backticks; a block that is never closed goes to the end.
fn fenced(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("```")?;
    let (_, block) = rest.split_once('\n')?;
    Some(block.split_once("\n```").map_or(block, |(block, _)| block))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: &str = "import math\n\ndef root(x):\n    \"\"\"The root.\"\"\"\n";

    #[test]
    fn a_continued_function_ends_where_its_body_does() {
        let program = program(PROMPT, "    return math.sqrt(x)\n\ndef other():\n    pass", "TEST", "root");
        assert_eq!(program, format!("{PROMPT}    return math.sqrt(x)\n\nTEST\n\ncheck(root)\n"));
    }

    #[test]
    fn a_body_counts_alone_whatever_follows_it() {
        let body = "    return math.sqrt(x)\n";
        let again = format!("\n\n{PROMPT}    return x\n");
        let fence = "\n# Usage\n```python\nprint(root(4))\n```\n".to_owned();
        let closed = "```\nThis takes the root.\n".to_owned();
        let documented = "\ndef other():\n    \"\"\"\n    ```\n    other()\n    ```\n    \"\"\"\n".to_owned();
        for rest in [again, fence, closed, documented] {
            let program = program(PROMPT, &format!("{body}{rest}"), "TEST", "root");
            assert!(program.starts_with(&format!("{PROMPT}{}\n", body.trim_end())), "{program}");
            assert!(program.matches("return").count() == 1 && !program.contains("```"), "{program}");
        }
    }

    #[test]
    fn a_chat_model_s_block_stands_after_the_prompt_whose_functions_it_may_use() {
        let prompt = format!("import math\n\ndef half(x):\n    return x / 2\n\n{PROMPT}");
        let answer = "Here it is:\n```python\ndef root(x):\n    return x ** half(1)\n```\nIt works.";
        let program = program(&prompt, answer, "TEST", "root");
        let block = "def root(x):\n    return x ** half(1)";
        assert_eq!(program, format!("{prompt}    pass\n\n{block}\n\nTEST\n\ncheck(root)\n"));
    }

    #[test]
    fn a_block_may_hold_the_body_alone() {
        let program = program(PROMPT, "```python\n    return math.sqrt(x)\n```", "TEST", "root");
        assert_eq!(program, format!("{PROMPT}    return math.sqrt(x)\n\nTEST\n\ncheck(root)\n"));
    }

    #[test]
    fn a_function_of_another_name_is_no_definition() {
        let program = program(PROMPT, "    return 1\ndef rooted(x):\n    return 2", "TEST", "root");
        assert!(!program.contains("rooted"), "{program}");
    }
}
