//! `docs/recipes.md` shows every field of a recipe with its default.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sorsa_experiment::Recipe;
use toml::{Table, Value};

/// The recipe on the page.
fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipes.md");
    let text = std::fs::read_to_string(path).unwrap();
    let block = text.split("```").find_map(|block| block.strip_prefix("toml\n")).unwrap();
    block.to_owned()
}

/// A line that holds a field behind `#`, without it.
fn uncommented(line: &str) -> Option<&str> {
    let field = line.strip_prefix("# ")?;
    field.split_once(" = ").filter(|(name, _)| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))?;
    Some(field)
}

/// The fields of each table of the page, those behind `#` too.
fn fields(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut fields: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut table = String::new();
    for line in page.lines() {
        if let Some((name, _)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            table = name.to_owned();
        } else if let Some((name, _)) = uncommented(line).unwrap_or(line).split_once(" = ") {
            fields.entry(table.clone()).or_default().insert(name.to_owned());
        }
    }
    fields
}

/// The fields that a table of a recipe may have, as the error about an unknown one lists them.
fn known(table: &str) -> BTreeSet<String> {
    let unknown = format!("[{table}]\nno_such_field = 1\n");
    let error = Recipe::from_table(unknown.parse().unwrap(), "page").unwrap_err().to_string();
    let (_, list) = error.split_once("expected").unwrap_or_else(|| panic!("{table}: {error}"));
    // The error may name the table behind the list.
    let list = list.split(" in `").next().unwrap_or(list);
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_recipe_of_the_page_is_the_default() {
    let written = Recipe::from_table(page().parse().unwrap(), "page").unwrap();
    let default = Recipe::from_table(Table::new(), "default").unwrap();
    assert_eq!(written.to_toml().unwrap(), default.to_toml().unwrap());
}

#[test]
fn the_page_shows_every_field_and_no_other() {
    let shown = fields(&page());
    for (table, fields) in &shown {
        let mut known = known(table);
        // A table inside has a heading of its own.
        known.retain(|name| !shown.contains_key(&format!("{table}.{name}")));
        assert_eq!(*fields, known, "[{table}]");
    }
    assert_eq!(shown.len(), 11);
}

#[test]
fn the_examples_behind_number_signs_are_valid() {
    let page = page();
    let mut table = String::new();
    for line in page.lines() {
        if let Some((name, _)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            table = name.to_owned();
        }
        let Some(field) = uncommented(line) else { continue };
        let mut recipe: Table = format!("[{table}]\n{field}\n").parse().unwrap();
        if field.starts_with("factor_rates") || field.starts_with("orthogonal_gamma") {
            recipe.insert("adapter".to_owned(), Value::Table("method = \"lora\"".parse().unwrap()));
        }
        if field.starts_with("rank_max") {
            recipe.insert("adapter".to_owned(), Value::Table(format!("rank = \"auto:0.9\"\n{field}").parse().unwrap()));
        }
        // An adapter is looked for, and a chat template needs the template that takes one.
        if field.starts_with("adapter = ")
            || field.starts_with("continue_from = ")
            || field.starts_with("chat_template")
        {
            continue;
        }
        if let Err(error) = Recipe::from_table(recipe, "page") {
            panic!("{field}: {error}");
        }
    }
}
