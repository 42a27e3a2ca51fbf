//! Finds out which form of message content a chat template expects, as the engine does.

use minijinja::machinery::ast::{Expr, ForLoop, Set, Stmt};
use minijinja::machinery::parse;

use crate::prompt::PromptError;

/// The form in which a template expects a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentFormat {
    /// One text; images become placeholder text in it.
    String,
    /// A list of parts, which the template loops over and writes placeholders for itself.
    OpenAi,
}

/// Tells the form by the rule of vLLM: a template with a loop over some message's `content`, or
/// over a variable of that name, takes parts. Rendering a probe instead would disagree with the
/// engine on templates that check for both forms.
///
/// # Errors
/// When the template does not parse.
pub fn detect(source: &str) -> Result<ContentFormat, PromptError> {
    let template = parse(source, "chat_template", Default::default());
    let root = template.map_err(|error| PromptError::Compile {
        reason: error.to_string(),
    })?;
    let mut found = Statements::default();
    found.collect(&root);
    let lists = found.names_of_messages();
    let messages = lists.and_then(|lists| found.names_of_one_message(&lists));
    // vLLM's own walk gives up where a loop or an assignment has no plain name as its target.
    let Some(messages) = messages else {
        return Ok(ContentFormat::String);
    };
    let over_content = |node: &&ForLoop<'_>| {
        let iterated = &node.iter;
        is_name(iterated, "content")
            || messages
                .iter()
                .any(|message| is_content_of(iterated, message))
    };
    Ok(match found.loops.iter().any(over_content) {
        true => ContentFormat::OpenAi,
        false => ContentFormat::String,
    })
}

/// The loops and assignments of a template, outer ones first.
#[derive(Default)]
struct Statements<'t, 's> {
    loops: Vec<&'t ForLoop<'s>>,
    sets: Vec<&'t Set<'s>>,
}

impl<'t, 's> Statements<'t, 's> {
    fn collect(&mut self, node: &'t Stmt<'s>) {
        match node {
            Stmt::Template(node) => self.collect_all(&node.children),
            Stmt::ForLoop(node) => {
                self.loops.push(node);
                self.collect_all(&node.body);
                self.collect_all(&node.else_body);
            }
            Stmt::IfCond(node) => {
                self.collect_all(&node.true_body);
                self.collect_all(&node.false_body);
            }
            Stmt::Set(node) => self.sets.push(node),
            Stmt::WithBlock(node) => self.collect_all(&node.body),
            Stmt::SetBlock(node) => self.collect_all(&node.body),
            Stmt::AutoEscape(node) => self.collect_all(&node.body),
            Stmt::FilterBlock(node) => self.collect_all(&node.body),
            Stmt::Block(node) => self.collect_all(&node.body),
            Stmt::Macro(node) => self.collect_all(&node.body),
            Stmt::CallBlock(node) => self.collect_all(&node.macro_decl.body),
            _ => {}
        }
    }

    fn collect_all(&mut self, nodes: &'t [Stmt<'s>]) {
        for node in nodes {
            self.collect(node);
        }
    }

    /// `messages` and every name that it, or part of it, is assigned to; `None` where a target is
    /// not a name.
    fn names_of_messages(&self) -> Option<Vec<&'t str>> {
        let mut names = vec!["messages"];
        let mut next = 0;
        while let Some(&name) = names.get(next) {
            next += 1;
            for set in &self.sets {
                if is_part_of(&set.expr, name) {
                    let target = name_of(&set.target)?;
                    if !names.contains(&target) {
                        names.push(target);
                    }
                }
            }
        }
        Some(names)
    }

    /// The loop variables of loops over any of `lists`; `None` where one is not a name.
    fn names_of_one_message(&self, lists: &[&str]) -> Option<Vec<&'t str>> {
        let over_messages = self
            .loops
            .iter()
            .filter(|node| lists.iter().any(|list| is_part_of(&node.iter, list)));
        over_messages.map(|node| name_of(&node.target)).collect()
    }
}

fn name_of<'s>(expr: &Expr<'s>) -> Option<&'s str> {
    match expr {
        Expr::Var(var) => Some(var.id),
        _ => None,
    }
}

fn is_name(expr: &Expr<'_>, name: &str) -> bool {
    name_of(expr) == Some(name)
}

/// What a filter, a test or a slice is applied to, as far in as it goes.
fn innermost<'t, 's>(expr: &'t Expr<'s>) -> &'t Expr<'s> {
    match expr {
        Expr::Filter(filter) => filter.expr.as_ref().map_or(expr, innermost),
        Expr::Test(test) => innermost(&test.expr),
        Expr::Slice(slice) => innermost(&slice.expr),
        _ => expr,
    }
}

fn is_part_of(expr: &Expr<'_>, name: &str) -> bool {
    is_name(innermost(expr), name)
}

fn is_content_of(expr: &Expr<'_>, message: &str) -> bool {
    match innermost(expr) {
        Expr::GetAttr(get) => get.name == "content" && is_name(&get.expr, message),
        Expr::GetItem(get) => {
            let key = get.subscript_expr.as_const();
            is_name(&get.expr, message) && key.is_some_and(|key| key.as_str() == Some("content"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_the_one_the_engine_detects() {
        use ContentFormat::{OpenAi, String};
        for (source, want) in [
            ("", String),
            ("{{ messages[0].content }}", String),
            ("{% for m in messages %}{{ m.content }}{% endfor %}", String),
            (
                "{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}",
                OpenAi,
            ),
            (
                "{% for m in messages %}{% for c in m['content'] %}{% endfor %}{% endfor %}",
                OpenAi,
            ),
            (
                "{% for m in messages[1:] %}{% for c in m.content|list %}{% endfor %}{% endfor %}",
                OpenAi,
            ),
            (
                "{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}{% endfor %}",
                String,
            ),
            (
                "{% for m in others %}{% for c in m.content %}{% endfor %}{% endfor %}",
                String,
            ),
            (
                "{% set rest = messages[1:] %}{% set all = rest|list %}{% for m in all %}\
                 {% if m.content is string %}{% else %}{% for c in m.content %}{% endfor %}{% endif %}{% endfor %}",
                OpenAi,
            ),
            (
                "{% macro show(content) %}{% for item in content %}{% endfor %}{% endmacro %}",
                OpenAi,
            ),
            (
                "{% set ns.all = messages %}{% for c in content %}{% endfor %}",
                String,
            ),
            (
                "{% for i, m in messages %}{% endfor %}{% for c in content %}{% endfor %}",
                String,
            ),
        ] {
            assert_eq!(detect(source).unwrap(), want, "{source}");
        }
    }

    #[test]
    fn a_template_that_does_not_parse_is_an_error() {
        assert!(matches!(
            detect("{% for %}"),
            Err(PromptError::Compile { .. })
        ));
    }
}
