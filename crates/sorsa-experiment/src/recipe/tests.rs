use super::*;

#[test]
fn all_faults_are_told_at_once() {
    let typed = "[data]\ntruncation = \"maybe\"\nformat = \"csv\"\n[svd]\nalgorithm = \"qr\"\ntolerance = 0.0\n\
        [model]\ndtype = \"f8\"\n[train]\nepochs = 0.0\n";
    let error = Recipe::from_table(typed.parse().unwrap(), "r").unwrap_err().to_string();
    for fault in [
        "r: train.epochs must be positive; unknown format `csv`, expected messages, sharegpt, metamathqa, gsm8k",
        "unknown data.truncation `maybe`, expected error, drop-row, keep-end or author-each",
        "unknown svd.algorithm `qr`, expected auto, exact, block-krylov or gram",
        "unknown dtype `f8`, expected f32 or bf16; svd.tolerance must be positive",
    ] {
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn a_band_of_the_svd_is_a_setting_of_the_method_and_fits_it() {
    let read = |text: &str| Recipe::from_table(text.parse().unwrap(), "r");
    for method in ["sorsa", "pissa"] {
        for (text, band) in [("\"minor\"", Band::Minor), ("\"middle\"", Band::Middle), ("7", Band::After(7))] {
            let recipe = read(&format!("adapter.method = \"{method}\"\nsvd.band = {text}")).unwrap();
            assert_eq!((recipe.svd.band, recipe.adapter.method.band()), (band, band));
            assert_eq!(read(&recipe.to_toml().unwrap()).unwrap(), recipe);
            let alone = read(&format!("adapter.method = \"{method}\"\nadapter.band = {text}")).unwrap();
            assert_eq!(alone.adapter, recipe.adapter);
        }
    }
    let principal = read("svd.band = \"principal\"").unwrap();
    assert_eq!(principal, read("").unwrap());
    assert!(!principal.to_toml().unwrap().contains("band"));
    for (text, fault) in [
        (
            "adapter.method = \"lora\"\nsvd.band = \"minor\"",
            "r: svd.band = minor is for sorsa, pissa, which split a weight's triplets, not for lora",
        ),
        (
            "svd.band = \"minor\"\nadapter.band = 3",
            "r: svd.band is minor, but adapter.band, which is the same setting, is 3",
        ),
        (
            "svd.band = \"minor\"\nsvd.algorithm = \"gram\"",
            "r: svd.algorithm must be auto or exact with band minor: others find leading triplets",
        ),
        (
            "svd.band = \"last\"",
            "r: unknown svd.band `last`, expected principal, middle, minor or the number of larger triplets",
        ),
    ] {
        assert_eq!(read(text).unwrap_err().to_string(), fault);
    }
    assert!(read("svd.band = -3").unwrap_err().to_string().contains("unknown band `-3`"));
}

#[test]
fn the_regularizer_of_orthogonal_vectors_is_for_methods_of_two_factors() {
    let read = |method: &str, gamma: &str| {
        let text = format!("adapter.method = \"{method}\"\ntrain.regularizer.orthogonal_gamma = {gamma}");
        Recipe::from_table(text.parse().unwrap(), "r")
    };
    for method in Method::ALL {
        let pair = ["pissa", "lora", "dora", "olora", "lora-ga"].contains(&method.name());
        assert!(read(method.name(), "0.0").is_ok());
        assert_eq!(read(method.name(), "1e-4").is_ok(), pair, "{method}");
    }
    let error = read("partial", "1e-4").unwrap_err().to_string();
    assert_eq!(
        error,
        "r: train.regularizer.orthogonal_gamma must be 0: partial does not train two factors, whose vectors could be \
         kept orthogonal"
    );
    let error = read("sorsa", "1e-4").unwrap_err().to_string();
    assert!(error.ends_with("sorsa has a regularizer of its own, of orthonormal vectors"), "{error}");
}

#[test]
fn an_old_recipe_of_pissa_has_no_regularizer() {
    // Every recipe has the field; before methods without a regularizer could have one it said nothing for them.
    let recipe =
        Recipe::from_table("adapter.method = \"pissa\"\ntrain.regularizer.gamma = 0.0004".parse().unwrap(), "r")
            .unwrap();
    assert_eq!(recipe.train.regularizer.orthogonal_gamma, 0.0);
    assert!(!recipe.to_toml().unwrap().contains("orthogonal_gamma"));
}

#[test]
fn a_recipe_is_the_same_after_it_was_written() {
    let mut recipe = Recipe::default();
    recipe.data.format = Some(Format::MetaMathQa);
    recipe.data.truncation = Truncation::AuthorEach;
    recipe.svd.algorithm = Algorithm::BlockKrylov;
    recipe.model.dtype = WeightFormat::Bf16;
    recipe.fill_embedded();
    let text = recipe.to_toml().unwrap();
    for spelling in ["\"metamathqa\"", "\"author-each\"", "\"block-krylov\"", "\"bf16\"", "\"alpaca\""] {
        assert!(text.contains(spelling), "{text}");
    }
    assert_eq!(Recipe::from_table(text.parse().unwrap(), "r").unwrap(), recipe);
}

#[test]
fn a_recipe_without_a_rate_finds_one_for_every_model_but_the_embedded() {
    let read = |text: &str| Recipe::from_table(text.parse().unwrap(), "test").unwrap();
    let rate = |text: &str| read(text).train.optimizer.learning_rate;
    let guess = |text: &str| read(text).learning_rate_guess();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"hidden_size": 576}"#).unwrap();
    let model = format!("model.path = {:?}\n", folder.path());
    for (method, embedded, published) in [
        ("sorsa", 2e-3, 8e-5),
        ("pissa", 2e-3, 8e-5),
        ("olora", 2e-3, 8e-5),
        ("lora", 4e-3, 2e-4),
        ("dora", 4e-3, 2e-4),
        ("partial", 1e-3, 2e-5),
        ("full", 1e-3, 2e-5),
    ] {
        let method = format!("adapter.method = \"{method}\"\n");
        assert_eq!(rate(&method), embedded, "{method}");
        assert_eq!(guess(&method), embedded, "{method}");
        assert_eq!(rate(&format!("{model}{method}")), LearningRate::Auto, "{method}");
        assert_eq!(guess(&format!("{model}{method}")), published, "{method}");
        assert_eq!(rate(&format!("{method}train.optimizer.learning_rate = \"auto\"")), LearningRate::Auto);
        assert_eq!(rate(&format!("{model}{method}train.optimizer.learning_rate = 5e-4")), 5e-4);
    }
    assert_eq!(rate("train.optimizer.kind = \"lion\""), 6e-4);
    let lion = Recipe::from_table("train.optimizer.kind = \"lion\"".parse().unwrap(), "test").unwrap();
    assert_eq!((lion.train.optimizer.beta1, lion.train.optimizer.beta2), (0.9, 0.99));
    assert_eq!(guess(&format!("{model}adapter.rank = 128")), 5e-5);
    assert_eq!(guess(&format!("{model}adapter.rank = 1")), 1e-4);
    assert_eq!(guess("model.path = \"meta-llama/Llama-2-7b-hf\""), 3e-5, "no width is known before the download");
}
