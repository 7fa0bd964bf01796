//! Filters of lists.

use std::cmp::Ordering;

use super::arguments::{Arguments, text_or, truth_or};
use super::filters::positive_count;
use super::interpreter::Interpreter;
use super::operators;
use super::text::Text;
use super::{Fault, Value};

impl Interpreter {
    pub(super) fn list_filter(&self, name: &str, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        match name {
            "first" | "last" => {
                arguments.none(name)?;
                let items = value.elements(&self.budget)?;
                let found = if name == "first" { items.first() } else { items.last() };
                Ok(found.cloned().unwrap_or_else(|| Value::undefined(format!("no {name} item, sequence was empty"))))
            }
            "list" => {
                arguments.none(name)?;
                Value::list(value.elements(&self.budget)?)
            }
            "reverse" => {
                arguments.none(name)?;
                let mut items = value.elements(&self.budget)?;
                items.reverse();
                match value {
                    Value::Str(text) => {
                        self.budget.allocate(text.size())?;
                        Ok(Value::Str(text.rewritten(text.as_str().chars().rev().collect())))
                    }
                    _ => Ok(Value::generator(items)),
                }
            }
            "min" | "max" => self.extreme(name, value, arguments),
            "sum" => {
                let [attribute, start] = arguments.bind(name, ["attribute", "start"])?;
                let mut sum = start.unwrap_or(Value::Int(0));
                for item in value.elements(&self.budget)? {
                    let item = self.attribute_or_self(item, attribute.as_ref())?;
                    sum = self.arithmetic(super::ast::Arithmetic::Add, &sum, &item)?;
                }
                Ok(sum)
            }
            "sort" => self.sorted(value, arguments),
            "unique" => {
                let [case_sensitive, attribute] = arguments.bind(name, ["case_sensitive", "attribute"])?;
                let case_sensitive = truth_or(case_sensitive, false);
                let (mut seen, mut kept): (Vec<Value>, Vec<Value>) = Default::default();
                for item in value.elements(&self.budget)? {
                    let key = self.attribute_or_self(item.clone(), attribute.as_ref())?;
                    let key = self.sort_key(&key, case_sensitive);
                    let mut known = false;
                    for other in &seen {
                        self.budget.step()?;
                        known |= operators::equal(other, &key, &self.budget)?;
                    }
                    if !known {
                        seen.push(key);
                        kept.push(item);
                    }
                }
                Ok(Value::generator(kept))
            }
            "groupby" => self.grouped(value, arguments),
            "dictsort" => self.dict_sorted(value, arguments),
            "items" => {
                arguments.none(name)?;
                match value {
                    Value::Undefined(_) => Ok(Value::generator(Vec::new())),
                    Value::Dict(dict) => {
                        self.budget.allocate(dict.entries.len() * 3 * size_of::<Value>())?;
                        let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
                        Ok(Value::generator(dict.entries.iter().map(pair).collect::<Result<_, _>>()?))
                    }
                    _ => Err(Fault::new("can only get item pairs from a mapping")),
                }
            }
            "batch" | "slice" => self.divided(name, value, arguments),
            _ => {
                let [separator, attribute] = arguments.bind(name, ["d", "attribute"])?;
                let separator = text_or(separator, "")?;
                let mut texts: Vec<Text> = Vec::new();
                for item in value.elements(&self.budget)? {
                    texts.push(self.print(&self.attribute_or_self(item, attribute.as_ref())?)?);
                }
                Ok(Value::Str(self.joined_texts(&separator, &texts)?))
            }
        }
    }

    fn attribute_or_self(&self, item: Value, attribute: Option<&Value>) -> Result<Value, Fault> {
        self.budget.step()?;
        match attribute {
            None | Some(Value::None) => Ok(item),
            Some(attribute) => self.path(&item, attribute),
        }
    }

    fn extreme(&self, name: &str, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        let [case_sensitive, attribute] = arguments.bind(name, ["case_sensitive", "attribute"])?;
        let case_sensitive = truth_or(case_sensitive, false);
        let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
        let mut best: Option<(Value, Value)> = None;
        for item in value.elements(&self.budget)? {
            let key = self.attribute_or_self(item.clone(), attribute.as_ref())?;
            let better = match &best {
                Some((other, _)) => self.compare_sorted(&key, other, case_sensitive)? == wanted,
                None => true,
            };
            if better {
                best = Some((key, item));
            }
        }
        Ok(best.map_or_else(|| Value::undefined("no aggregated item, sequence was empty"), |(_, item)| item))
    }

    fn sorted(&self, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        let [reverse, case_sensitive, attribute] =
            arguments.bind("sort", ["reverse", "case_sensitive", "attribute"])?;
        let case_sensitive = truth_or(case_sensitive, false);
        let mut keyed = Vec::new();
        for item in value.elements(&self.budget)? {
            // Several attributes are separated by commas.
            let mut keys = Vec::new();
            match &attribute {
                Some(Value::Str(attributes)) => {
                    for attribute in attributes.as_str().split(',') {
                        let key = self.path(&item, &Value::str(attribute))?;
                        keys.push(self.sort_key(&key, case_sensitive));
                    }
                }
                attribute => {
                    let key = self.attribute_or_self(item.clone(), attribute.as_ref())?;
                    keys.push(self.sort_key(&key, case_sensitive));
                }
            }
            keyed.push((Value::list(keys)?, item));
        }
        let keyed = self.sort_by_key(keyed, truth_or(reverse, false))?;
        Value::list(keyed.into_iter().map(|(_, item)| item).collect())
    }

    /// A stable sort; a reverse one keeps the order of equal items too.
    fn sort_by_key(&self, mut keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<(Value, Value)>, Fault> {
        let mut fault = None;
        keyed.sort_by(|left, right| {
            if fault.is_some() {
                return Ordering::Equal;
            }
            match self.budget.step().and_then(|()| operators::order(&left.0, &right.0, &self.budget)) {
                Ok(order) if reverse => order.reverse(),
                Ok(order) => order,
                Err(error) => {
                    fault = Some(error);
                    Ordering::Equal
                }
            }
        });
        match fault {
            Some(fault) => Err(fault),
            None => Ok(keyed),
        }
    }

    fn dict_sorted(&self, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        let [case_sensitive, by, reverse] = arguments.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
        let Value::Dict(dict) = value else { return Err(Fault::new("dictsort needs a dict")) };
        let by = text_or(by, "key")?;
        let by_value = match by.as_str() {
            "key" => false,
            "value" => true,
            _ => return Err(Fault::new("you can only sort by either \"key\" or \"value\"")),
        };
        let case_sensitive = truth_or(case_sensitive, false);
        self.budget.allocate(dict.entries.len() * 3 * size_of::<Value>())?;
        let mut keyed = Vec::new();
        for (key, value) in &dict.entries {
            let sort_key = self.sort_key(if by_value { value } else { key }, case_sensitive);
            keyed.push((sort_key, Value::tuple(vec![key.clone(), value.clone()])?));
        }
        let keyed = self.sort_by_key(keyed, truth_or(reverse, false))?;
        Value::list(keyed.into_iter().map(|(_, pair)| pair).collect())
    }

    /// Pairs of a key and the items that have it.
    fn grouped(&self, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        let [attribute, default, case_sensitive] =
            arguments.bind("groupby", ["attribute", "default", "case_sensitive"])?;
        let case_sensitive = truth_or(case_sensitive, false);
        let mut keyed = Vec::new();
        for item in value.elements(&self.budget)? {
            let key = match self.attribute_or_self(item.clone(), attribute.as_ref())? {
                Value::Undefined(_) if default.is_some() => default.clone().unwrap_or(Value::None),
                key => key,
            };
            keyed.push((self.sort_key(&key, case_sensitive), Value::tuple(vec![key, item])?));
        }
        let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
        for (sort_key, pair) in self.sort_by_key(keyed, false)? {
            let Value::Tuple(pair) = pair else { continue };
            let [key, item] = [pair.items[0].clone(), pair.items[1].clone()];
            match groups.last_mut() {
                Some((last, _, items)) if operators::equal(last, &sort_key, &self.budget)? => items.push(item),
                _ => groups.push((sort_key, key, vec![item])),
            }
        }
        let group = |(_, key, items)| Value::tuple(vec![key, Value::list(items)?]);
        Value::list(groups.into_iter().map(group).collect::<Result<_, _>>()?)
    }

    /// `batch(n)`: lists of n items; `slice(n)`: n lists.
    fn divided(&self, name: &str, value: Value, arguments: Arguments) -> Result<Value, Fault> {
        let parameter = if name == "batch" { "linecount" } else { "slices" };
        let [count, fill] = arguments.bind(name, [parameter, "fill_with"])?;
        let count = positive_count(count, name, parameter)?;
        let items = value.elements(&self.budget)?;
        self.budget.allocate((items.len() + count.min(1 << 40)) * 2 * size_of::<Value>())?;
        let mut lists = Vec::new();
        let mut items = items.into_iter();
        let total = items.len();
        let lists_wanted = if name == "batch" { total.div_ceil(count) } else { count };
        for at in 0..lists_wanted {
            let (length, short) = match name {
                "batch" => (count, at + 1 == lists_wanted && !total.is_multiple_of(count)),
                _ => (total / count + usize::from(at < total % count), at >= total % count),
            };
            let mut list: Vec<Value> = items.by_ref().take(length).collect();
            if let (true, Some(fill)) = (short, fill.as_ref().filter(|fill| !matches!(fill, Value::None))) {
                match name {
                    "batch" => {
                        self.budget.allocate(count * size_of::<Value>())?;
                        list.resize(count, fill.clone());
                    }
                    _ if !total.is_multiple_of(count) => list.push(fill.clone()),
                    _ => {}
                }
            }
            lists.push(Value::list(list)?);
        }
        Ok(Value::generator(lists))
    }
}
