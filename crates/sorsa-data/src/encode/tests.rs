//! Tests of the encoder.

use super::*;
use crate::Message;
use crate::tokenizer::tests::{bytes, bytes_with};

const TALK: &str = "{% for m in messages %}<s>{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>a:{% endif %}";

fn encoder(template: PromptTemplate, options: EncodeOptions) -> Encoder {
    Encoder::new(Arc::new(bytes()), template, options).unwrap()
}

fn raw(max_length: usize, truncation: Truncation) -> Encoder {
    encoder(PromptTemplate::Raw, EncodeOptions { max_length, truncation, ..EncodeOptions::default() })
}

fn chat(options: EncodeOptions) -> Encoder {
    encoder(PromptTemplate::Chat(ChatTemplate::new(TALK, "<s>", "</s>").unwrap()), options)
}

fn conversation(turns: &[(&str, &str)]) -> Record {
    let messages = turns.iter().map(|&(role, text)| Message::new(role, text)).collect();
    Record::new(1, Content::Chat(Conversation::new(messages)))
}

/// The text of all ids, and that of the targets, with `<` and `>` for the begin and end tokens.
fn show(example: &Example) -> (String, String) {
    let tokenizer = bytes();
    let text = |id: &u32| match id {
        0 => "<".to_owned(),
        1 => ">".to_owned(),
        _ => tokenizer.decode(&[*id]).unwrap(),
    };
    let targets = example.ids.iter().zip(&example.target_mask).filter(|&(_, &target)| target);
    (example.ids.iter().map(text).collect(), targets.map(|(id, _)| text(id)).collect())
}

fn shown(encoder: &Encoder, record: &Record) -> Vec<(String, String)> {
    encoder.encode(record).unwrap().iter().map(show).collect()
}

fn pair(ids: &str, targets: &str) -> Vec<(String, String)> {
    vec![(ids.to_owned(), targets.to_owned())]
}

#[test]
fn a_token_that_the_model_has_no_row_for_is_refused_wherever_text_becomes_ids() {
    let encoder = encoder(PromptTemplate::Raw, EncodeOptions::default());
    let record = Record::instruction(7, "ab", "c");
    let prompt = encoder.encode_prompt(&record).unwrap();
    let largest = *prompt.iter().max().unwrap();
    let fits = encoder.clone().for_vocabulary(largest as usize + 1);
    assert_eq!(fits.encode_prompt(&record).unwrap(), prompt);
    let small = encoder.for_vocabulary(largest as usize);
    let expected = format!("token {largest} is beyond the model's vocabulary of {largest} tokens");
    let text = Record { content: Content::Text("ab".into()), ..record.clone() };
    for error in [
        small.encode_prompt(&record).unwrap_err(),
        small.encode(&record).unwrap_err(),
        small.encode(&text).unwrap_err(),
    ] {
        assert!(error.to_string().contains(&expected), "{error}");
    }
    let all = small.encode_all(&[record]).unwrap_err().to_string();
    assert!(all.contains("row 7") && all.contains(&expected), "{all}");
}

#[test]
fn the_loss_is_on_the_answer_and_its_end() {
    let record = Record::instruction(1, "1+1=", "2");
    assert_eq!(shown(&raw(8, Truncation::Error), &record), pair("<1+1=2>", "2>"));
    let all = EncodeOptions { train_on_prompt: true, append_eos: false, ..EncodeOptions::default() };
    assert_eq!(shown(&encoder(PromptTemplate::Raw, all), &record), pair("<1+1=2", "<1+1=2"));
}

#[test]
fn each_truncation_cuts_what_it_says() {
    let record = Record::instruction(3, "prompt", "answer");
    let cut = |truncation, max_length| shown(&raw(max_length, truncation), &record);
    assert_eq!(cut(Truncation::KeepEnd, 14), pair("<promptanswer>", "answer>"));
    assert_eq!(cut(Truncation::KeepEnd, 10), pair("<ptanswer>", "answer>"));
    assert_eq!(cut(Truncation::KeepEnd, 8), pair("<answer>", "answer>"));
    assert_eq!(cut(Truncation::KeepEnd, 5), pair("<ans>", "ans>"));
    assert_eq!(cut(Truncation::KeepEnd, 2), pair("<>", ">"));
    assert_eq!(cut(Truncation::AuthorEach, 7), pair("<promptanswer>", "answer>"));
    assert_eq!(cut(Truncation::AuthorEach, 4), pair("<proansw", "answ"));
    assert_eq!(cut(Truncation::DropRow, 13), []);
    let error = raw(13, Truncation::Error).encode_all(&[record.clone(), record.clone()]).unwrap_err();
    insta::assert_snapshot!(error, @r"
    2 of 2 records cannot be encoded:
      row 3: 14 tokens, at most 13 are allowed; raise max_length or choose another truncation
      row 3: 14 tokens, at most 13 are allowed; raise max_length or choose another truncation
    ");
    let truncated = raw(10, Truncation::KeepEnd).encode_all(&[record]).unwrap();
    assert_eq!((truncated.truncated, truncated.target_tokens, truncated.tokens), (1, 7, 10));
}

#[test]
fn rows_that_cannot_be_encoded_are_counted_beside_the_usable_ones() {
    let refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ m.content }}{% endfor %}";
    let template = PromptTemplate::Chat(ChatTemplate::new(refusing, "", "").unwrap());
    let refused = Record { row: 4, ..conversation(&[("system", "s"), ("user", "a"), ("assistant", "b")]) };
    let good = conversation(&[("user", "a"), ("assistant", "bc")]);
    let options = EncodeOptions { max_length: 6, ..EncodeOptions::default() };
    let long = Record { row: 9, ..conversation(&[("user", "aaaaaaaaa"), ("assistant", "b")]) };
    let records = [refused, good, long];
    let (set, bad) = encoder(template, options).encode_usable(&records);
    assert_eq!((set.examples.len(), bad.count), (1, 2));
    insta::assert_snapshot!(bad.in_a_line(), @"row 4: chat template: invalid operation: no system role (in chat_template:1); row 9: 10 tokens, at most 6 are allowed; raise max_length or choose another truncation");
    let nothing = conversation(&[("user", "a")]);
    let (set, _) = chat(EncodeOptions::default()).encode_usable(&[nothing]);
    assert_eq!((set.dropped, set.without_target), (1, 1));
}

#[test]
fn a_text_that_is_much_too_long_is_measured_by_its_beginning() {
    let giant = Record::instruction(3, "1 2 ".repeat(1 << 20), "three");
    let set = raw(64, Truncation::DropRow).encode_all(std::slice::from_ref(&giant)).unwrap();
    assert_eq!((set.dropped, set.without_target), (1, 0));
    let error = raw(64, Truncation::Error).encode(&giant).unwrap_err().to_string();
    assert!(error.starts_with("more than ") && error.contains("(4194309 bytes), at most 64 are allowed"), "{error}");
    let talk = conversation(&[("user", "a"), ("assistant", &"1 2 ".repeat(1 << 20))]);
    assert!(
        chat(EncodeOptions { truncation: Truncation::DropRow, ..EncodeOptions::default() })
            .encode(&talk)
            .unwrap()
            .is_empty()
    );
    assert!(matches!(chat(EncodeOptions::default()).encode(&talk), Err(DataError::MuchTooLong { .. })));
    // What is cut is the same as if the whole text was made tokens.
    let prompt: String = (0..40_000).map(|number| format!("{number} ")).collect();
    let answer = "answer ".repeat(60_000);
    for truncation in [Truncation::KeepEnd, Truncation::AuthorEach] {
        let cut = raw(64, truncation).encode(&Record::instruction(1, &prompt, &answer)).unwrap().remove(0);
        let tokens = [bytes().encode(&prompt).unwrap(), bytes().encode(&answer).unwrap()];
        let expected = match truncation {
            Truncation::KeepEnd => [&[0][..], &tokens[1][..62], &[1]].concat(),
            _ => [&[0][..], &tokens[0][..63], &tokens[1][..64]].concat(),
        };
        assert_eq!(cut.ids, expected, "{truncation}");
        assert!(cut.truncated);
    }
    let end = raw(64, Truncation::KeepEnd).encode(&Record::instruction(1, &prompt, "x")).unwrap().remove(0);
    assert_eq!(bytes().decode(&end.ids).unwrap(), format!("{}x", &prompt[prompt.len() - 61..]));
    let prompts = raw(64, Truncation::Error).encode_prompts(vec![giant], 512);
    assert_eq!((prompts.usable.len(), prompts.bad.count, prompts.too_long[0].row), (0, 0, 3));
    assert!(prompts.too_long[0].partial && prompts.too_long[0].to_string().starts_with("row 3 has more than "));
}

#[test]
fn long_text_becomes_windows_that_predict_every_token_once() {
    let record = Record::new(1, Content::Text("abcdefgh".to_owned()));
    let windows = shown(&raw(4, Truncation::Error), &record);
    assert_eq!(windows.iter().map(|(ids, _)| ids.as_str()).collect::<Vec<_>>(), ["<abc", "cdef", "fgh>"]);
    let set = raw(4, Truncation::Error).encode_all(&[record]).unwrap();
    assert_eq!((set.target_tokens, set.truncated), (9, 0));
}

#[test]
fn the_loss_of_a_conversation_is_on_the_assistants_turns() {
    let record = conversation(&[("user", "hi"), ("assistant", "yo"), ("user", "no"), ("assistant", "ok")]);
    let ids = "<u:hi><a:yo><u:no><a:ok>";
    assert_eq!(shown(&chat(EncodeOptions::default()), &record), pair(ids, "yo>ok>"));
    let short = EncodeOptions { max_length: 12, truncation: Truncation::KeepEnd, ..EncodeOptions::default() };
    assert_eq!(shown(&chat(short), &record), pair("<u:no><a:ok>", "ok>"));
    let exchange = Record::instruction(1, "hi", "yo");
    assert_eq!(shown(&chat(EncodeOptions::default()), &exchange), pair("<u:hi><a:yo>", "yo>"));
}

#[test]
fn the_prompt_to_generate_from_is_the_start_of_the_training_example() {
    let suffix = EncodeOptions { prompt_suffix: " think".to_owned(), ..EncodeOptions::default() };
    let record = Record::instruction(1, "why", "because");
    for plain in [encoder(PromptTemplate::Alpaca, EncodeOptions::default()), chat(EncodeOptions::default())] {
        let example = plain.encode(&record).unwrap().remove(0);
        let first_target = example.target_mask.iter().position(|&target| target).unwrap();
        let prompt = plain.encode_prompt(&record).unwrap();
        assert_eq!(prompt, example.ids[..first_target]);
        let template = plain.template.clone();
        let with_suffix = encoder(template, suffix.clone()).encode_prompt(&record).unwrap();
        assert_eq!(bytes().decode(&with_suffix[prompt.len()..]).unwrap(), " think");
    }
}

#[test]
fn the_code_template_leaves_the_begin_token_to_the_tokenizer() {
    for (adds, first) in [(false, '@'), (true, '<')] {
        let config = format!(r#"{{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": {adds}}}"#);
        let tokenizer = Arc::new(bytes_with(&config));
        let encoder = Encoder::new(tokenizer, PromptTemplate::Code, EncodeOptions::default()).unwrap();
        let example = encoder.encode(&Record::instruction(1, "q", "a")).unwrap().remove(0);
        assert_eq!(show(&example).0.chars().next(), Some(first));
    }
}

#[test]
fn the_begin_token_of_a_tokenizer_that_does_not_put_it_stands_for_an_empty_prompt_alone() {
    let tokenizer = Arc::new(bytes_with(r#"{"bos_token": "<s>", "eos_token": "</s>"}"#));
    let ids = |template: PromptTemplate, text: &str| {
        let encoder = Encoder::new(Arc::clone(&tokenizer), template, EncodeOptions::default()).unwrap();
        encoder.encode_prompt(&Record::instruction(1, text, "")).unwrap()
    };
    assert_eq!(ids(PromptTemplate::Raw, ""), [0]);
    assert_eq!(ids(PromptTemplate::Raw, "a"), tokenizer.encode("a").unwrap());
    assert_ne!(ids(PromptTemplate::Question, "a")[0], 0);
    assert_eq!(ids(PromptTemplate::Alpaca, "a")[0], 0);
}

#[test]
fn a_template_that_leaves_out_an_earlier_answer_is_refused() {
    let rewriting = "{% for m in messages %}[{{ m.content if loop.last else '..' }}]{% endfor %}";
    let template = PromptTemplate::Chat(ChatTemplate::new(rewriting, "", "").unwrap());
    let record = conversation(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]);
    let error = encoder(template, EncodeOptions::default()).encode(&record).unwrap_err();
    assert!(matches!(error, DataError::AmbiguousTurn { message: 2, .. }), "{error}");
}

#[test]
fn a_turn_of_weight_zero_is_read_and_not_trained() {
    let mut record = conversation(&[("user", "hi"), ("assistant", "no"), ("user", "so"), ("assistant", "ok")]);
    let Content::Chat(talk) = &mut record.content else { panic!("a conversation") };
    talk.messages[1].trained = false;
    let ids = "<u:hi><a:no><u:so><a:ok>";
    assert_eq!(shown(&chat(EncodeOptions::default()), &record), pair(ids, "ok>"));
    let marked =
        "{% for m in messages %}<s>{{ m.role[0] }}:{% generation %}{{ m.content }}</s>{% endgeneration %}{% endfor %}";
    let template = PromptTemplate::Chat(ChatTemplate::new(marked, "", "").unwrap());
    let with_marks = encoder(template, EncodeOptions::default());
    assert_eq!(shown(&with_marks, &record), pair(ids, "hi>so>ok>"));
}

#[test]
fn fields_that_the_template_leaves_out_are_counted() {
    let mut record = conversation(&[("user", "hi"), ("assistant", "yo")]);
    let Content::Chat(talk) = &mut record.content else { panic!("a conversation") };
    talk.messages[1].fields.insert("tool_calls".into(), serde_json::json!([{"function": {"name": "f"}}]));
    let encoder = chat(EncodeOptions::default());
    assert_eq!(encoder.unwritten_fields(&[record.clone(), record]), [("tool_calls".to_owned(), 2)]);
    let null = "{% for m in messages %}{{ m.content }}|{{ m.tool_calls }}{% endfor %}";
    let template = ChatTemplate::new(null, "", "").unwrap();
    let mut call = Message::new("assistant", "");
    call.fields.insert("content".into(), serde_json::Value::Null);
    call.fields.insert("tool_calls".into(), serde_json::json!([{"name": "f"}]));
    insta::assert_snapshot!(template.render(&[Message::new("user", "q"), call], false).unwrap_err(),
        @"chat template: it writes `None` for the content of message 2, which is null");
}

#[test]
fn contradicting_options_are_all_named() {
    let tokenizer = TextTokenizer::from_bytes(
        br#"{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0}}}"#,
        None,
    );
    let options = EncodeOptions { max_length: 1, ..EncodeOptions::default() };
    let error = Encoder::new(Arc::new(tokenizer.unwrap()), PromptTemplate::Raw, options).unwrap_err();
    insta::assert_snapshot!(error, @"max_length is 1, at least 2 tokens are needed; append_eos is set, and the tokenizer has no end token");
}
