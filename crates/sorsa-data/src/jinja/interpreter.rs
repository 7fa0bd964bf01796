//! Runs the statements of a template.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::arguments::Arguments;
use super::ast::{Expr, FilterCall, ForLoop, MacroDefinition, Statement, StatementKind, Target};
use super::budget::{Budget, Limits};
use super::operators;
use super::text::{MarkKind, Text, TextBuilder};
use super::{Fault, Rendered, Value};

/// Runs a template with the variables `globals`.
pub(super) fn render(body: &[Statement], globals: Vec<(String, Value)>, limits: Limits) -> Result<Rendered, Fault> {
    let interpreter = Interpreter { budget: Budget::new(limits), outputs: RefCell::new(vec![TextBuilder::default()]) };
    let scope = Rc::new(Scope { variables: RefCell::new(globals), parent: None });
    let result = interpreter.run(body, &scope);
    // A macro holds the scope that holds it.
    scope.clear();
    result?;
    let output = interpreter.outputs.borrow_mut().pop().unwrap_or_default();
    let (text, marks) = output.into_parts();
    Ok(Rendered { text, marks })
}

/// Variables of a block, and the block around it.
#[derive(Debug)]
pub(super) struct Scope {
    variables: RefCell<Vec<(String, Value)>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    pub(super) fn inside(parent: &Rc<Scope>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: Some(Rc::clone(parent)) })
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            let variables = scope.variables.borrow();
            if let Some((_, value)) = variables.iter().find(|(known, _)| known == name) {
                return Some(value.clone());
            }
            scope = scope.parent.as_deref()?;
        }
    }

    pub(super) fn set(&self, name: &str, value: Value) {
        let mut variables = self.variables.borrow_mut();
        match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => variables.push((name.to_owned(), value)),
        }
    }

    fn clear(&self) {
        self.variables.borrow_mut().clear();
    }
}

/// A macro, and the scope that it was defined in.
#[derive(Debug)]
pub(crate) struct Macro {
    pub(super) definition: Arc<MacroDefinition>,
    pub(super) scope: Rc<Scope>,
}

/// The variable `loop`.
#[derive(Debug)]
pub(crate) struct LoopState {
    pub(super) items: Vec<Value>,
    pub(super) index: Cell<usize>,
    pub(super) depth: usize,
    /// The loop and its scope, if it is recursive.
    pub(super) recursive: Option<(Arc<ForLoop>, Rc<Scope>)>,
    /// The arguments of the last `loop.changed(..)`.
    pub(super) changed: RefCell<Option<Value>>,
}

/// How a statement ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

pub(super) struct Interpreter {
    pub(super) budget: Budget,
    /// The output, and the blocks whose text is caught.
    outputs: RefCell<Vec<TextBuilder>>,
}

impl Interpreter {
    pub(super) fn run(&self, body: &[Statement], scope: &Rc<Scope>) -> Result<Flow, Fault> {
        for statement in body {
            self.budget.step()?;
            let flow = self.budget.nested(|| self.statement(statement, scope));
            match flow.map_err(|fault| fault.at(statement.line))? {
                Flow::Next => {}
                flow => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&self, statement: &Statement, scope: &Rc<Scope>) -> Result<Flow, Fault> {
        match &statement.kind {
            StatementKind::Text(text) => self.write_str(text)?,
            StatementKind::Output(value) => {
                let value = self.evaluate(value, scope)?;
                let text = self.print(&value)?;
                self.write(&text)?;
            }
            StatementKind::If { branches, otherwise } => {
                for (test, body) in branches {
                    if self.evaluate(test, scope)?.is_true() {
                        return self.run(body, scope);
                    }
                }
                return self.run(otherwise, scope);
            }
            StatementKind::For(for_loop) => {
                let iterable = self.evaluate(&for_loop.iterable, scope)?;
                self.for_loop(for_loop, iterable, scope, 0)?;
            }
            StatementKind::Set { target, value } => {
                let value = self.evaluate(value, scope)?;
                self.assign(target, value, scope)?;
            }
            StatementKind::SetBlock { target, filters, body } => {
                let text = self.capture(|| self.run_inside(body, scope))?;
                let text = self.filtered(text, filters, scope)?;
                self.assign(target, text, scope)?;
            }
            StatementKind::Macro(definition) => {
                let value = Macro { definition: Arc::clone(definition), scope: Rc::clone(scope) };
                scope.set(&definition.name, Value::Macro(Rc::new(value)));
            }
            StatementKind::Call { call, caller } => self.call_block(call, caller, scope)?,
            StatementKind::FilterBlock { filters, body } => {
                let text = self.capture(|| self.run_inside(body, scope))?;
                let value = self.filtered(text, filters, scope)?;
                let text = self.print(&value)?;
                self.write(&text)?;
            }
            StatementKind::With { assignments, body } => {
                let inside = Scope::inside(scope);
                for (target, value) in assignments {
                    let value = self.evaluate(value, scope)?;
                    self.assign(target, value, &inside)?;
                }
                let flow = self.run(body, &inside);
                inside.clear();
                return flow;
            }
            StatementKind::Generation(body) => self.marked(MarkKind::Generation, || self.run_inside(body, scope))?,
            StatementKind::Block(body) => self.run_inside(body, scope)?,
            StatementKind::Break => return Ok(Flow::Break),
            StatementKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    /// Runs a block whose assignments end with it, and which no loop around it can be left from.
    fn run_inside(&self, body: &[Statement], scope: &Rc<Scope>) -> Result<(), Fault> {
        let inside = Scope::inside(scope);
        let result = self.run(body, &inside);
        inside.clear();
        result.map(drop)
    }

    fn write_str(&self, text: &str) -> Result<(), Fault> {
        self.budget.allocate(text.len())?;
        if let Some(output) = self.outputs.borrow_mut().last_mut() {
            output.push_str(text);
        }
        Ok(())
    }

    fn write(&self, text: &Text) -> Result<(), Fault> {
        self.budget.allocate(text.size())?;
        if let Some(output) = self.outputs.borrow_mut().last_mut() {
            output.push(text);
        }
        Ok(())
    }

    /// The text that `work` writes.
    pub(super) fn capture(&self, work: impl FnOnce() -> Result<(), Fault>) -> Result<Value, Fault> {
        self.outputs.borrow_mut().push(TextBuilder::default());
        let result = work();
        let output = self.outputs.borrow_mut().pop().unwrap_or_default();
        result?;
        Ok(Value::Str(output.finish()))
    }

    /// Marks what `work` writes.
    fn marked<T>(&self, kind: MarkKind, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
        let start = self.outputs.borrow().last().map_or(0, TextBuilder::len);
        let result = work()?;
        self.budget.allocate(size_of::<super::Mark>())?;
        if let Some(output) = self.outputs.borrow_mut().last_mut() {
            output.mark(start..output.len(), kind);
        }
        Ok(result)
    }

    /// Runs a loop that is `depth` loops inside its own recursion.
    pub(super) fn for_loop(
        &self,
        for_loop: &Arc<ForLoop>,
        iterable: Value,
        scope: &Rc<Scope>,
        depth: usize,
    ) -> Result<(), Fault> {
        let mut items = iterable.elements(&self.budget)?;
        if let Some(condition) = &for_loop.condition {
            let mut kept = Vec::new();
            for item in items {
                let inside = Scope::inside(scope);
                self.assign(&for_loop.target, item.clone(), &inside)?;
                if self.evaluate(condition, &inside)?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            return self.run_inside(&for_loop.otherwise, scope);
        }
        let recursive = for_loop.recursive.then(|| (Arc::clone(for_loop), Rc::clone(scope)));
        let state = Rc::new(LoopState { items, index: Cell::new(0), depth, recursive, changed: RefCell::new(None) });
        for (index, item) in state.items.iter().enumerate() {
            self.budget.step()?;
            state.index.set(index);
            let inside = Scope::inside(scope);
            inside.set("loop", Value::Loop(Rc::clone(&state)));
            self.assign(&for_loop.target, item.clone(), &inside)?;
            let message = match item {
                Value::Dict(dict) => dict.message,
                _ => None,
            };
            let flow = match message {
                Some(message) => self.marked(MarkKind::Turn(message), || self.run(&for_loop.body, &inside)),
                None => self.run(&for_loop.body, &inside),
            };
            inside.clear();
            if flow? == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    fn assign(&self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<(), Fault> {
        match target {
            Target::Name(name) => {
                self.budget.allocate(name.len() + size_of::<(String, Value)>())?;
                scope.set(name, value);
                Ok(())
            }
            Target::Attribute(name, attribute) => match scope.get(name) {
                Some(Value::Namespace(fields)) => {
                    value.may_be_held()?;
                    let mut fields = fields.borrow_mut();
                    match fields.iter_mut().find(|(known, _)| known == attribute) {
                        Some((_, old)) => *old = value,
                        None => fields.push((attribute.clone(), value)),
                    }
                    Ok(())
                }
                _ => Err(Fault::new(format!("cannot assign attribute on non-namespace object `{name}`"))),
            },
            Target::Tuple(targets) => {
                value.defined()?;
                let values = value.elements(&self.budget)?;
                if values.len() != targets.len() {
                    let (expected, found) = (targets.len(), values.len());
                    return Err(Fault::new(format!("expected {expected} values to unpack, found {found}")));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope)?;
                }
                Ok(())
            }
        }
    }

    fn filtered(&self, value: Value, filters: &[FilterCall], scope: &Rc<Scope>) -> Result<Value, Fault> {
        let mut value = value;
        for filter in filters {
            let arguments = self.arguments(&filter.arguments, scope)?;
            value = self.filter(&filter.name, value, arguments)?;
        }
        Ok(value)
    }

    /// `{% call f(a) %}..{% endcall %}`: calls `f` with the block as the macro `caller`.
    fn call_block(&self, call: &Expr, caller: &Arc<MacroDefinition>, scope: &Rc<Scope>) -> Result<(), Fault> {
        let Expr::Call(callee, arguments) = call else {
            return Err(Fault::new("the tag `call` needs a call"));
        };
        let callee = self.evaluate(callee, scope)?;
        let mut arguments = self.arguments(arguments, scope)?;
        let caller = Macro { definition: Arc::clone(caller), scope: Rc::clone(scope) };
        arguments.named.push(("caller".to_owned(), Value::Macro(Rc::new(caller))));
        let value = self.call(callee, arguments)?;
        let text = self.print(&value)?;
        self.write(&text)
    }

    pub(super) fn call_macro(&self, called: &Macro, arguments: Arguments) -> Result<Value, Fault> {
        let definition = &called.definition;
        let scope = Scope::inside(&called.scope);
        let (mut positional, mut named) = (arguments.positional.into_iter(), arguments.named);
        for (name, default) in &definition.parameters {
            let given = match positional.next() {
                Some(value) => Some(value),
                None => named.iter().position(|(known, _)| known == name).map(|at| named.swap_remove(at).1),
            };
            let value = match (given, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.evaluate(default, &scope)?,
                (None, None) => Value::undefined(format!("parameter '{name}' was not provided")),
            };
            scope.set(name, value);
        }
        if let Some(at) = named.iter().position(|(name, _)| name == "caller") {
            scope.set("caller", named.swap_remove(at).1);
        }
        let name = &definition.name;
        if positional.next().is_some() {
            let count = definition.parameters.len();
            return Err(Fault::new(format!("macro '{name}' takes not more than {count} arguments")));
        }
        if let Some((unknown, _)) = named.first() {
            return Err(Fault::new(format!("macro '{name}' takes no keyword argument '{unknown}'")));
        }
        let text = self.capture(|| self.run(&definition.body, &scope).map(drop));
        scope.clear();
        text
    }

    /// Whether the arguments of `loop.changed(..)` differ from the last ones.
    pub(super) fn loop_changed(&self, state: &LoopState, arguments: Vec<Value>) -> Result<bool, Fault> {
        let arguments = Value::tuple(arguments)?;
        let same = match &*state.changed.borrow() {
            Some(last) => operators::equal(last, &arguments, &self.budget)?,
            None => false,
        };
        *state.changed.borrow_mut() = Some(arguments);
        Ok(!same)
    }
}
