//! Programs from completions, as HumanEval (Chen et al. 2021, arXiv 2107.03374) tests them. Nothing here runs any.

/// What ends a function's body, when a model writes on after it.
const ENDS: [&str; 6] = ["\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@"];

/// The program that tests a completion: the function, the problem's tests, and the call `check(entry_point)`.
///
/// A completion with a fenced block is a chat model's: the block is taken. One that defines `entry_point` itself stands
/// alone, after the prompt's imports; any other continues `prompt` and is cut where the function's body ends.
///
/// ```
/// let program = sorsa_eval::code::program("def one():\n", "    return 1\nprint(one())", "def check(f):\n    assert f() == 1", "one");
/// assert_eq!(program, "def one():\n    return 1\n\ndef check(f):\n    assert f() == 1\n\ncheck(one)\n");
/// ```
pub fn program(prompt: &str, completion: &str, test: &str, entry_point: &str) -> String {
    let code = fenced(completion).unwrap_or(completion);
    let defines = code.lines().any(|line| {
        line.strip_prefix("def ")
            .and_then(|rest| rest.strip_prefix(entry_point))
            .is_some_and(|rest| rest.starts_with('('))
    });
    let function = if defines {
        let imports = prompt.lines().filter(|line| line.starts_with("import ") || line.starts_with("from "));
        let imports: String = imports.map(|line| format!("{line}\n")).collect();
        imports + code
    } else {
        let end = ENDS.iter().filter_map(|end| code.find(end)).min().unwrap_or(code.len());
        format!("{prompt}{}", &code[..end])
    };
    format!("{}\n\n{}\n\ncheck({entry_point})\n", function.trim_end(), test.trim())
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
    fn a_chat_model_s_block_stands_alone_with_the_imports_of_the_prompt() {
        let answer = "Here it is:\n```python\ndef helper():\n    return 2\n\ndef root(x):\n    return x ** (1 / helper())\n```\nIt works.";
        let program = program(PROMPT, answer, "TEST", "root");
        let block = "def helper():\n    return 2\n\ndef root(x):\n    return x ** (1 / helper())";
        assert_eq!(program, format!("import math\n{block}\n\nTEST\n\ncheck(root)\n"));
    }

    #[test]
    fn a_function_of_another_name_is_no_definition() {
        let program = program(PROMPT, "    return 1\ndef rooted(x):\n    return 2", "TEST", "root");
        assert!(!program.contains("rooted"), "{program}");
    }
}
