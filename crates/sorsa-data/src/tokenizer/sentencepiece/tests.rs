use super::*;

/// A field of a message: a number of the wire's kind 2 with its bytes.
fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
    let score = [&[2 << 3 | 5][..], &score.to_le_bytes()].concat();
    bytes_field(1, &[bytes_field(1, text.as_bytes()), score, vec![3 << 3, kind]].concat())
}

/// A model of byte pairs: `<unk>`, `<s>`, `</s>`, then `pieces`.
fn model(pieces: &[(&str, f32)]) -> Vec<u8> {
    let special = [("<unk>", 2), ("<s>", 3), ("</s>", 3)].map(|(text, kind)| piece(text, 0.0, kind));
    let normal: Vec<Vec<u8>> = pieces.iter().map(|(text, score)| piece(text, *score, 1)).collect();
    [special.concat(), normal.concat(), bytes_field(2, &[3 << 3, 2])].concat()
}

#[test]
fn merges_come_in_the_order_of_scores() {
    let pieces = [("a", -9.0), ("b", -9.0), ("ab", -2.0), ("abab", -1.0), ("ba", -3.0), ("aba", -3.0)];
    let json = convert(&model(&pieces), TokenizerClass::Llama, &Map::new()).unwrap();
    let merges = json["model"]["merges"].to_string();
    let expected = r#"[["aba","b"],["ab","ab"],["a","b"],["ab","a"],["a","ba"],["b","a"]]"#;
    assert_eq!(merges, expected);
    assert_eq!(json["model"]["vocab"]["abab"], 6);
}

#[test]
fn damaged_files_are_refused() {
    let refused = |bytes: &[u8]| convert(bytes, TokenizerClass::Llama, &Map::new()).unwrap_err();
    let whole = model(&[("a", 0.0)]);
    assert!(convert(&whole, TokenizerClass::Llama, &Map::new()).is_ok());
    for end in 1..whole.len() {
        // A file that is cut between two fields has fewer pieces.
        let _ = convert(&whole[..end], TokenizerClass::Llama, &Map::new());
    }
    insta::assert_snapshot!(refused(b""), @"it has no pieces");
    insta::assert_snapshot!(refused(b"IQ== 0\nIg== 1\n"), @"it is a file of tiktoken");
    assert!(refused(b"\x07\x00").starts_with("it is not a SentencePiece model"));
    insta::assert_snapshot!(refused(&model(&[("a", f32::NAN)])), @"the score of `a` is NaN");
    let words = [piece("a", 0.0, 1), bytes_field(2, &[3 << 3, 3])].concat();
    insta::assert_snapshot!(refused(&words), @"it is a model of kind 3; unigram (1) and BPE (2) are supported");
}
