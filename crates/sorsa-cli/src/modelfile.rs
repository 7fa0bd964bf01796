//! A `Modelfile` for Ollama beside a GGUF file: `ollama create NAME -f Modelfile` makes a model of both.

use std::path::{Path, PathBuf};

use sorsa_checkpoint::gguf::{GgufFile, Value};
use sorsa_data::{Around, SystemPlace, TextTokenizer, TurnEnd, Turns};
use sorsa_files::write_atomic;

/// The first line of a file that was written here, and that may be replaced.
const MARK: &str = "# Written by sorsa export.";

/// What became of the `Modelfile`.
pub struct Written {
    /// The file, if it was written.
    pub file: Option<PathBuf>,
    /// What people should know, a sentence each.
    pub notes: Vec<String>,
}

/// Writes a `Modelfile` for `gguf`, with the tokenizer and the chat template of the model in `folder`. A `Modelfile` that was not
/// written here stays.
pub fn write(folder: &Path, gguf: &Path) -> anyhow::Result<Written> {
    let file = gguf.with_file_name("Modelfile");
    if file.exists() && !std::fs::read(&file).is_ok_and(|text| text.starts_with(MARK.as_bytes())) {
        let note = format!("{} is not of sorsa and stays as it is", file.display());
        return Ok(Written { file: None, notes: vec![note] });
    }
    let name = gguf.file_name().unwrap_or_default().to_string_lossy();
    let (text, notes) = match TextTokenizer::from_dir(folder) {
        Ok(tokenizer) => text(&name, &tokenizer, &begin_token(gguf, &tokenizer)),
        Err(_) => (format!("{MARK}\nFROM ./{name}\n"), Vec::new()),
    };
    write_atomic(&file, text)?;
    Ok(Written { file: Some(file), notes })
}

/// The token that programs put before every text by the word of the GGUF file; empty if they put none.
fn begin_token(gguf: &Path, tokenizer: &TextTokenizer) -> String {
    let Ok(file) = GgufFile::open(gguf) else { return String::new() };
    let id = match file.get("tokenizer.ggml.add_bos_token") {
        Some(Value::Bool(true)) => file.get("tokenizer.ggml.bos_token_id").and_then(Value::as_u64),
        _ => None,
    };
    id.and_then(|id| tokenizer.token_text(u32::try_from(id).ok()?)).unwrap_or_default()
}

/// The text of the file for the GGUF file `name`, and notes. `begin` is the token that programs put before every text.
fn text(name: &str, tokenizer: &TextTokenizer, begin: &str) -> (String, Vec<String>) {
    let mut text = format!("{MARK}\nFROM ./{name}\n");
    let mut notes = Vec::new();
    let mut stops: Vec<String> = tokenizer.stops().iter().filter_map(|id| tokenizer.token_text(*id)).collect();
    if let Ok(template) = tokenizer.chat_template() {
        match sorsa_data::PromptTemplate::Chat(template.clone()).turn_end(tokenizer) {
            Some(TurnEnd::Token(id)) => stops.extend(tokenizer.token_text(id)),
            Some(TurnEnd::Text(end)) => stops.push(end),
            Some(TurnEnd::Nothing) | None => {}
        }
        let turns = Turns::of(template, begin);
        match turns.as_ref().and_then(go_template) {
            Some(template) => {
                text.push_str(&format!("TEMPLATE \"\"\"{template}\"\"\"\n"));
                if let Some(system) = turns.and_then(|turns| turns.default_system) {
                    text.push_str(&format!("SYSTEM \"\"\"{system}\"\"\"\n"));
                }
            }
            None => notes.push(
                "the Modelfile has no TEMPLATE, because the chat template writes turns in ways that are not translated to Go: Ollama \
                 looks among its own for one that fits the template in the GGUF file"
                    .to_owned(),
            ),
        }
    }
    stops.sort();
    stops.dedup();
    // A stop is one line in quotes.
    for stop in stops.iter().filter(|stop| !stop.contains(['"', '\n'])) {
        text.push_str(&format!("PARAMETER stop \"{stop}\"\n"));
    }
    (text, notes)
}

/// The turns as a template of Go's `text/template`, like those of Ollama's library; nothing if a text has marks of Go's own.
fn go_template(turns: &Turns) -> Option<String> {
    const CONTENT: &str = "{{ .Content }}";
    let around = |around: &Around, content: &str| format!("{}{content}{}", around.before, around.after);
    let mut branches = vec![("assistant", around(&turns.assistant, CONTENT))];
    let mut texts: Vec<&str> =
        vec![&turns.assistant.before, &turns.assistant.after, &turns.user.before, &turns.user.after];
    let mut start = "";
    match &turns.system {
        SystemPlace::Nowhere => branches.push(("user", around(&turns.user, CONTENT))),
        SystemPlace::Turn(system) => {
            branches.extend([("user", around(&turns.user, CONTENT)), ("system", around(system, CONTENT))]);
            texts.extend([system.before.as_str(), system.after.as_str()]);
        }
        SystemPlace::FirstQuestion(between) => {
            start = "{{ $system := .System }}";
            let system = format!("{{{{ if $system }}}}{{{{ $system }}}}{between}{{{{ $system = \"\" }}}}{{{{ end }}}}");
            branches.push(("user", around(&turns.user, &format!("{system}{CONTENT}"))));
            texts.push(between);
        }
    }
    texts.push(&turns.prompt);
    texts.extend(turns.default_system.as_deref());
    if texts.iter().any(|text| ["{{", "}}", "\"\"\""].iter().any(|mark| text.contains(mark))) {
        return None;
    }
    let branches = branches.into_iter().rev().map(|(role, text)| format!("if eq .Role \"{role}\" }}}}{text}"));
    let branches = branches.collect::<Vec<_>>().join("{{ else ");
    Some(format!("{start}{{{{ range .Messages }}}}{{{{ {branches}{{{{ end }}}}{{{{ end }}}}{}", turns.prompt))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(before: &str, after: &str) -> Around {
        Around { before: before.to_owned(), after: after.to_owned() }
    }

    fn turns(system: SystemPlace) -> Turns {
        Turns {
            user: around("<u>", "</u>\n"),
            assistant: around("<a>", "</a>\n"),
            prompt: "<a>".to_owned(),
            system,
            default_system: None,
        }
    }

    #[test]
    fn turns_become_a_template_of_go() {
        let answer = "{{ else if eq .Role \"assistant\" }}<a>{{ .Content }}</a>\n{{ end }}{{ end }}<a>";
        let own = turns(SystemPlace::Turn(around("<s>", "</s>")));
        assert_eq!(
            go_template(&own).unwrap(),
            format!(
                "{{{{ range .Messages }}}}{{{{ if eq .Role \"system\" }}}}<s>{{{{ .Content }}}}</s>\
                 {{{{ else if eq .Role \"user\" }}}}<u>{{{{ .Content }}}}</u>\n{answer}"
            )
        );
        let first = turns(SystemPlace::FirstQuestion("\n\n".to_owned()));
        assert_eq!(
            go_template(&first).unwrap(),
            format!(
                "{{{{ $system := .System }}}}{{{{ range .Messages }}}}{{{{ if eq .Role \"user\" }}}}<u>\
                 {{{{ if $system }}}}{{{{ $system }}}}\n\n{{{{ $system = \"\" }}}}{{{{ end }}}}{{{{ .Content }}}}</u>\n{answer}"
            )
        );
        let marks = Turns { prompt: "{{ x }}".to_owned(), ..turns(SystemPlace::Nowhere) };
        assert_eq!(go_template(&marks), None);
    }
}
