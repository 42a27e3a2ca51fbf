//! Finds out which form of message content a chat template expects, as the engine does.

use minijinja::machinery::ast::{CallArg, Expr, Macro};
use minijinja::machinery::parse;

use crate::prompt::PromptError;
use crate::prompt::syntax::{Loop, Syntax};

/// The form in which a template expects a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentFormat {
    /// One text; images become placeholder text in it.
    String,
    /// A list of parts, which the template loops over and writes placeholders for itself.
    OpenAi,
}

/// Tells the form by the rule of vLLM 0.32: a template with a loop over some message's `content`
/// takes parts, and so does one that passes it to a macro with a loop over it, or loops over a
/// variable of that name. Rendering a probe instead would disagree with the engine on templates
/// that take both forms.
///
/// # Errors
/// When the template does not parse.
pub fn detect(source: &str) -> Result<ContentFormat, PromptError> {
    let template = parse(source, "chat_template", Default::default());
    let root = template.map_err(|error| PromptError::Compile {
        reason: error.to_string(),
    })?;
    let syntax = Syntax::of(&root);
    let lists = names_of_messages(&syntax);
    let messages = lists.and_then(|lists| names_of_one_message(&syntax, &lists));
    // vLLM's own walk gives up where a loop or an assignment has no plain name as its target.
    let Some(messages) = messages else {
        return Ok(ContentFormat::String);
    };
    let params: Vec<Vec<&str>> = syntax
        .macros
        .iter()
        .map(|node| content_params(&syntax, node, &messages))
        .collect();
    let is_over_content = |at: &Loop<'_, '_>| {
        let is_content = |message: &&str| is_content_of(&at.node.iter, message);
        let mut filled = at.macros.iter().rev().map(|index| &params[*index]);
        let innermost = filled.find(|params| !params.is_empty());
        let name = name_of(&at.node.iter);
        messages.iter().any(is_content)
            || name.is_some_and(|name| innermost.is_some_and(|params| params.contains(&name)))
            || (at.macros.is_empty() && name == Some("content"))
    };
    Ok(match syntax.loops.iter().any(is_over_content) {
        true => ContentFormat::OpenAi,
        false => ContentFormat::String,
    })
}

/// `messages` and every name that it, or part of it, is assigned to; `None` where a target is not
/// a name.
fn names_of_messages<'s>(syntax: &Syntax<'_, 's>) -> Option<Vec<&'s str>> {
    let mut names = vec!["messages"];
    let mut next = 0;
    while let Some(&name) = names.get(next) {
        next += 1;
        for set in syntax.sets.iter().filter(|set| is_part_of(&set.expr, name)) {
            let target = name_of(&set.target)?;
            if !names.contains(&target) {
                names.push(target);
            }
        }
    }
    Some(names)
}

/// The loop variables of loops over any of `lists`; `None` where one is not a name.
fn names_of_one_message<'s>(syntax: &Syntax<'_, 's>, lists: &[&str]) -> Option<Vec<&'s str>> {
    let loops = syntax.loops.iter().map(|at| at.node);
    loops
        .filter(|node| lists.iter().any(|list| is_part_of(&node.iter, list)))
        .map(|node| name_of(&node.target))
        .collect()
}

/// The parameters of a macro that get some message's `content` in one of its calls.
fn content_params<'s>(
    syntax: &Syntax<'_, 's>,
    node: &Macro<'s>,
    messages: &[&str],
) -> Vec<&'s str> {
    let calls = syntax
        .calls
        .iter()
        .filter(|call| is_name(&call.expr, node.name));
    let mut params = Vec::new();
    for call in calls {
        let mut positions = node.args.iter();
        for argument in &call.args {
            let (param, value) = match argument {
                CallArg::Pos(value) => (positions.next().and_then(name_of), value),
                CallArg::Kwarg(name, value) => (Some(*name), value),
                CallArg::PosSplat(_) | CallArg::KwargSplat(_) => continue,
            };
            if messages.iter().any(|message| is_content_of(value, message)) {
                params.extend(param);
            }
        }
    }
    params
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

    const MACRO: &str = "{% macro show(x, n=1) %}{% for part in x %}{% endfor %}{% endmacro %}";

    fn check(source: &str, want: ContentFormat) {
        assert_eq!(detect(source).unwrap(), want, "{source}");
    }

    #[test]
    fn the_form_is_the_one_the_engine_detects() {
        use ContentFormat::{OpenAi, String};
        for (body, want) in [
            ("{{ m.content }}", String),
            ("{% for c in m.content %}{% endfor %}", OpenAi),
            ("{% for c in m['content'] %}{% endfor %}", OpenAi),
            ("{% for c in m.content[1:]|list %}{% endfor %}", OpenAi),
            (
                "{% if x is y %}{% else %}{% for c in m.content %}{% endfor %}{% endif %}",
                OpenAi,
            ),
            ("{% for c in m.tool_calls %}{% endfor %}", String),
            ("{% for c in other.content %}{% endfor %}", String),
            (
                "{% set content = m.content %}{% for c in content %}{% endfor %}",
                OpenAi,
            ),
            ("{{ show(m.content) }}", OpenAi),
            ("{% if show(n=2, x=m.content|list) %}{% endif %}", OpenAi),
            ("{{ 'a' ~ [show(m['content'], 2)] }}", OpenAi),
            ("{{ show(m.role, m.content) }}", String),
            ("{{ show(m) }}", String),
        ] {
            let body = format!("{MACRO}{{% for m in LIST %}}{body}{{% endfor %}}");
            for list in ["messages", "messages[1:]", "messages|reverse"] {
                check(&body.replace("LIST", list), want);
            }
            let renamed = body.replace("LIST", "all");
            check(
                &renamed,
                if body.contains("in content") {
                    OpenAi
                } else {
                    String
                },
            );
            let set = "{% set rest = messages[1:] %}{% set all = rest|list %}";
            check(&format!("{set}{renamed}"), want);
        }
    }

    #[test]
    fn loops_over_the_bare_name_count_outside_macros_only() {
        use ContentFormat::{OpenAi, String};
        let bare = "{% for c in content %}{% endfor %}";
        check("", String);
        check(bare, OpenAi);
        check(
            &format!("{{% macro show(content) %}}{bare}{{% endmacro %}}"),
            String,
        );
        // The engine's own walk fails on these targets, and it then takes text.
        check(&format!("{{% set ns.all = messages %}}{bare}"), String);
        check(
            &format!("{{% for i, m in messages %}}{{% endfor %}}{bare}"),
            String,
        );
    }

    #[test]
    fn a_template_that_does_not_parse_is_an_error() {
        let error = detect("{% for %}");
        assert!(matches!(error, Err(PromptError::Compile { .. })));
    }
}
