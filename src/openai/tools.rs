//! The tools of a chat, in the one form that every engine gives its template.

use serde_json::{Map, Value};

use crate::openai::error::ApiError;
use crate::openai::fields;

/// OpenAI's own limit.
const TOOLS_MAX: usize = 128;

/// Takes the list of tools, each as vLLM 0.32 dumps it for the template: its fields in one order,
/// what is missing as null, unknown ones left out. `None` where there are none.
///
/// # Errors
/// When it is no list of objects, is too long, or a flag is no boolean.
pub(crate) fn take(fields: &mut Map<String, Value>) -> Result<Option<Value>, ApiError> {
    let tools = match fields.shift_remove("tools") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(tools)) if tools.is_empty() => return Ok(None),
        Some(Value::Array(tools)) => tools,
        Some(_) => return Err(fields::invalid_type("tools", "a list of objects")),
    };
    if tools.len() > TOOLS_MAX {
        let message = format!("{} tools; at most {TOOLS_MAX}", tools.len());
        return Err(ApiError::invalid("too_many_tools", "tools", message));
    }
    let named = tools.into_iter().enumerate();
    let tools: Result<Vec<Value>, _> = named.map(|(at, tool)| one(tool, at)).collect();
    tools.map(|tools| Some(tools.into()))
}

fn one(tool: Value, at: usize) -> Result<Value, ApiError> {
    let function = match &tool {
        Value::Object(fields) => fields.get("function"),
        _ => return Err(fields::invalid_type("tools", "a list of objects")),
    };
    let Some(function) = function.filter(|function| function.is_object()) else {
        // Without a function it is no tool, as the engine will say.
        return Ok(tool);
    };
    let param = format!("tools[{at}]");
    let deferred = flag(&tool["defer_loading"], "defer_loading", &param)?;
    let function = normal_function(function, deferred, &format!("{param}.function"))?;
    let mut normal = Map::new();
    let kind = tool.get("type").cloned();
    normal.insert("type".to_owned(), kind.unwrap_or("function".into()));
    normal.insert("function".to_owned(), Value::Object(function));
    add_flag(&mut normal, "defer_loading", deferred);
    Ok(Value::Object(normal))
}

/// A function's own fields; `deferred` is what its tool says, for one that says nothing.
fn normal_function(
    function: &Value,
    deferred: Option<bool>,
    param: &str,
) -> Result<Map<String, Value>, ApiError> {
    let mut normal = Map::new();
    for name in ["name", "description", "parameters"] {
        normal.insert(name.to_owned(), function[name].clone());
    }
    add_flag(
        &mut normal,
        "strict",
        flag(&function["strict"], "strict", param)?,
    );
    let own = flag(&function["defer_loading"], "defer_loading", param)?;
    add_flag(&mut normal, "defer_loading", own.or(deferred));
    Ok(normal)
}

fn flag(value: &Value, name: &str, param: &str) -> Result<Option<bool>, ApiError> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(flag) => Ok(Some(*flag)),
        _ => Err(fields::invalid_type(
            &format!("{param}.{name}"),
            "a boolean",
        )),
    }
}

fn add_flag(fields: &mut Map<String, Value>, name: &str, flag: Option<bool>) {
    fields.extend(flag.map(|flag| (name.to_owned(), flag.into())));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(tool: &Value) -> Result<Option<Value>, ApiError> {
        let Value::Object(mut fields) = json!({"tools": [tool]}) else {
            panic!("it is an object");
        };
        take(&mut fields)
    }

    // The right side is what vLLM 0.32's ChatCompletionToolsParam(**tool).model_dump() gave, as
    // text because the order counts.
    #[test]
    fn a_tool_is_what_the_engine_makes_of_it() {
        for (tool, dumped) in [
            (
                json!({"type": "function", "function": {"name": "clock"}}),
                r#"{"type":"function","function":{"name":"clock","description":null,"parameters":null}}"#,
            ),
            (
                json!({"function": {"parameters": {"type": "object", "b": 1, "a": 2},
                    "description": "d", "name": "f"}}),
                r#"{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","b":1,"a":2}}}"#,
            ),
            (
                json!({"type": "function", "y": 2,
                    "function": {"strict": true, "name": "f", "description": null, "x": 1}}),
                r#"{"type":"function","function":{"name":"f","description":null,"parameters":null,"strict":true}}"#,
            ),
            (
                json!({"type": "function", "function": {"name": "f", "strict": null}}),
                r#"{"type":"function","function":{"name":"f","description":null,"parameters":null}}"#,
            ),
            (
                json!({"defer_loading": true, "type": "function", "function": {"name": "f"}}),
                r#"{"type":"function","function":{"name":"f","description":null,"parameters":null,"defer_loading":true},"defer_loading":true}"#,
            ),
            (
                json!({"defer_loading": true,
                    "function": {"name": "f", "defer_loading": false, "strict": false}}),
                r#"{"type":"function","function":{"name":"f","description":null,"parameters":null,"strict":false,"defer_loading":false},"defer_loading":true}"#,
            ),
        ] {
            let tools = taken(&tool).unwrap().unwrap();
            assert_eq!(tools[0].to_string(), dumped);
        }
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (tool, param) in [
            (json!(1), "tools"),
            (
                json!({"function": {"strict": "true"}}),
                "tools[0].function.strict",
            ),
            (
                json!({"defer_loading": 1, "function": {}}),
                "tools[0].defer_loading",
            ),
        ] {
            let error = taken(&tool).unwrap_err();
            assert_eq!(
                (error.code, error.param.as_deref()),
                ("invalid_type", Some(param))
            );
        }
    }
}
