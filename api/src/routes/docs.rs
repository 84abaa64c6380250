//! Renders an OpenAPI document as HTML.
//!
//! The renderers that exist (Swagger UI, Redoc, Scalar, RapiDoc) are scripts of 0.5 to 3 MB. They would
//! be a large part of a program of 10 MB, and need a weaker Content-Security-Policy; this page works without scripts.

use askama::Template;
use serde_json::{Map, Value, json};

use crate::page::STYLE;

/// Renders `document`, an OpenAPI document, as HTML.
pub(super) fn render(document: &Value) -> askama::Result<String> {
    Page::new(document).render()
}

#[derive(Template)]
#[template(path = "docs.html")]
struct Page<'a> {
    style: &'static str,
    /// The URL of the server, which is the start of links to other pages.
    base: &'a str,
    title: &'a str,
    version: &'a str,
    description: &'a str,
    operations: Vec<Operation<'a>>,
    schemas: Vec<Schema<'a>>,
}

/// An operation: a method of a path.
struct Operation<'a> {
    id: String,
    method: String,
    path: &'a str,
    summary: &'a str,
    description: &'a str,
    parameters: Vec<Field<'a>>,
    body: Vec<Content<'a>>,
    responses: Vec<Response<'a>>,
}

/// A response of an operation.
struct Response<'a> {
    status: &'a str,
    description: &'a str,
    headers: Vec<Field<'a>>,
    contents: Vec<Content<'a>>,
}

/// A media type of a body, with its schema.
struct Content<'a> {
    media_type: &'a str,
    kind: Vec<Piece<'a>>,
    fields: Vec<Field<'a>>,
    examples: Vec<Example<'a>>,
}

/// An example of a body.
struct Example<'a> {
    name: &'a str,
    text: String,
}

/// A named schema.
struct Schema<'a> {
    name: &'a str,
    kind: Vec<Piece<'a>>,
    description: &'a str,
    fields: Vec<Field<'a>>,
}

/// A parameter, a header, or a member of an object.
struct Field<'a> {
    name: String,
    kind: Vec<Piece<'a>>,
    required: bool,
    description: &'a str,
}

/// A part of the description of a type.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Word(String),
    /// The name of a schema.
    Schema(&'a str),
}

impl<'a> Page<'a> {
    fn new(document: &'a Value) -> Self {
        let info = &document["info"];
        let operations = members(&document["paths"])
            .flat_map(|(path, item)| {
                const METHODS: [&str; 8] = [
                    "get", "head", "post", "put", "patch", "delete", "options", "trace",
                ];
                METHODS
                    .iter()
                    .filter_map(|method| Some((*method, item.get(method)?)))
                    .map(|(method, operation)| {
                        Operation::new(method, path, &item["parameters"], operation, document)
                    })
            })
            .collect();
        let schemas = members(&document["components"]["schemas"])
            .map(|(name, schema)| Schema {
                name,
                kind: kind(schema),
                description: text(schema, "description"),
                fields: fields(schema),
            })
            .collect();
        Self {
            style: STYLE,
            base: text(&document["servers"][0], "url"),
            title: text(info, "title"),
            version: text(info, "version"),
            description: text(info, "description"),
            operations,
            schemas,
        }
    }
}

impl<'a> Operation<'a> {
    fn new(
        method: &str,
        path: &'a str,
        shared: &'a Value,
        operation: &'a Value,
        document: &'a Value,
    ) -> Self {
        let parameters = items(shared)
            .chain(items(&operation["parameters"]))
            .map(|parameter| resolve(parameter, document))
            .map(|parameter| Field {
                name: text(parameter, "name").into(),
                kind: [word(format!("in {}: ", text(parameter, "in")))]
                    .into_iter()
                    .chain(kind(&parameter["schema"]))
                    .collect(),
                required: parameter["required"] == true,
                description: text(parameter, "description"),
            })
            .collect();
        Self {
            id: format!("{method}-{path}"),
            method: method.to_uppercase(),
            path,
            summary: text(operation, "summary"),
            description: text(operation, "description"),
            parameters,
            body: contents(resolve(&operation["requestBody"], document), document),
            responses: members(&operation["responses"])
                .map(|(status, response)| {
                    Response::new(status, resolve(response, document), document)
                })
                .collect(),
        }
    }
}

impl<'a> Response<'a> {
    fn new(status: &'a str, response: &'a Value, document: &'a Value) -> Self {
        Self {
            status,
            description: text(response, "description"),
            headers: members(&response["headers"])
                .map(|(name, header)| Field {
                    name: name.into(),
                    kind: [word("header: ".into())]
                        .into_iter()
                        .chain(kind(&header["schema"]))
                        .collect(),
                    required: header["required"] == true,
                    description: text(header, "description"),
                })
                .collect(),
            contents: contents(response, document),
        }
    }
}

fn contents<'a>(holder: &'a Value, document: &'a Value) -> Vec<Content<'a>> {
    members(&holder["content"])
        .map(|(media_type, content)| {
            let schema = &content["schema"];
            let mut examples: Vec<Example> = members(&content["examples"])
                .filter_map(|(name, example)| Some((name, example.get("value")?)))
                .chain(content.get("example").map(|example| ("Example", example)))
                .map(|(name, example)| Example {
                    name,
                    text: format_example(example),
                })
                .collect();
            if examples.is_empty() && media_type.ends_with("json") {
                examples.extend(example(schema, document, 0).map(|example| Example {
                    name: "Example",
                    text: format_example(&example),
                }));
            }
            Content {
                media_type,
                kind: kind(schema),
                fields: fields(schema),
                examples,
            }
        })
        .collect()
}

/// The maximum depth of a generated example, because schemas can be recursive.
const MAX_DEPTH: usize = 8;

/// Generates an example for `schema` from the examples in it; `None` if the schema is not specific enough.
fn example(schema: &Value, document: &Value, depth: usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    let inner = |schema| example(schema, document, depth + 1);
    let given = [
        &schema["example"],
        &schema["examples"][0],
        &schema["const"],
        &schema["enum"][0],
    ];
    if let Some(given) = given.into_iter().find(|it| !it.is_null()) {
        return Some(given.clone());
    }
    if schema.get("$ref").is_some() {
        return inner(resolve(schema, document));
    }
    if schema.get("allOf").is_some() {
        let parts = items(&schema["allOf"]).filter_map(inner);
        return Some(
            parts
                .filter_map(|part| part.as_object().cloned())
                .flatten()
                .collect(),
        );
    }
    // The first alternative that has an example, which `null` has not.
    let mut choices = items(&schema["oneOf"]).chain(items(&schema["anyOf"]));
    if let Some(chosen) = choices.find_map(inner) {
        return Some(chosen);
    }
    let kind = schema["type"].as_str().or_else(|| {
        items(&schema["type"])
            .filter_map(Value::as_str)
            .find(|kind| *kind != "null")
    });
    match kind {
        Some("object") if schema["additionalProperties"].is_object() => {
            Some(json!({"…": inner(&schema["additionalProperties"])?}))
        }
        Some("object") if schema.get("properties").is_some() => Some(
            members(&schema["properties"])
                .filter_map(|(name, property)| Some((name.to_owned(), inner(property)?)))
                .collect(),
        ),
        Some("array") => Some(json!([
            inner(&schema["items"]).or_else(|| inner(&schema["prefixItems"][0]))?
        ])),
        Some("string") if schema["format"] == "date-time" => {
            Some("2026-01-02T03:04:05.678Z".into())
        }
        Some("string") => Some("…".into()),
        Some("boolean") => Some(true.into()),
        Some("integer") => Some(schema.get("minimum").cloned().unwrap_or(1.into())),
        Some("number") => Some(1.5.into()),
        _ => None,
    }
}

/// The members of an object schema, including those of nested inline objects.
fn fields(schema: &Value) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    add_fields("", schema, &mut fields);
    fields
}

fn add_fields<'a>(prefix: &str, schema: &'a Value, fields: &mut Vec<Field<'a>>) {
    for part in ["allOf", "oneOf", "anyOf"]
        .into_iter()
        .flat_map(|part| items(&schema[part]))
    {
        add_fields(prefix, part, fields);
    }
    for (key, property) in members(&schema["properties"]) {
        let name = format!("{prefix}{key}");
        fields.push(Field {
            name: name.clone(),
            kind: kind(property),
            required: items(&schema["required"]).any(|it| it == key),
            description: text(property, "description"),
        });
        add_fields(&format!("{name}."), property, fields);
        add_fields(&format!("{name}[]."), &property["items"], fields);
    }
}

/// Describes the type of a schema in words.
fn kind(schema: &Value) -> Vec<Piece<'_>> {
    if let Some(reference) = schema["$ref"].as_str() {
        return vec![Piece::Schema(
            reference.rsplit('/').next().unwrap_or(reference),
        )];
    }
    for (part, between) in [("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")] {
        if schema.get(part).is_some() {
            return joined(items(&schema[part]).map(kind), between);
        }
    }
    if let Some(only) = schema.get("const") {
        return vec![word(only.to_string())];
    }
    if let Some(values) = schema["enum"].as_array() {
        return joined(values.iter().map(|it| vec![word(it.to_string())]), " or ");
    }
    let types = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        types => items(types).filter_map(Value::as_str).collect(),
    };
    let of = |name: &str| match name {
        "array" => [word("array of ".into())]
            .into_iter()
            .chain(kind(&schema["items"]))
            .collect(),
        "object" if schema["additionalProperties"].is_object() => {
            [word("object whose members are ".into())]
                .into_iter()
                .chain(kind(&schema["additionalProperties"]))
                .collect()
        }
        name => vec![word(match schema["format"].as_str() {
            Some(format) if name != "null" => format!("{name} ({format})"),
            _ => name.into(),
        })],
    };
    joined(types.into_iter().map(of), " or ")
}

fn joined<'a>(kinds: impl Iterator<Item = Vec<Piece<'a>>>, between: &str) -> Vec<Piece<'a>> {
    let mut all = Vec::new();
    for kind in kinds {
        if !all.is_empty() {
            all.push(word(between.into()));
        }
        all.extend(kind);
    }
    all
}

const fn word(text: String) -> Piece<'static> {
    Piece::Word(text)
}

/// Formats an example: strings unchanged, other values as indented JSON.
fn format_example(example: &Value) -> String {
    match example {
        Value::String(text) => text.clone(),
        json => format!("{json:#}"),
    }
}

/// Splits a text into paragraphs of spans; the flag of a span tells whether it is code.
fn prose(text: &str) -> impl Iterator<Item = impl Iterator<Item = (bool, &str)>> {
    text.split("\n\n")
        .filter(|paragraph| !paragraph.trim().is_empty())
        .map(|paragraph| {
            paragraph
                .split('`')
                .enumerate()
                .map(|(place, span)| (place % 2 == 1, span))
        })
}

/// Resolves a reference; returns `value` itself if it is none.
fn resolve<'a>(value: &'a Value, document: &'a Value) -> &'a Value {
    value["$ref"]
        .as_str()
        .and_then(|reference| document.pointer(reference.strip_prefix('#')?))
        .unwrap_or(value)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value
        .as_object()
        .into_iter()
        .flat_map(Map::iter)
        .map(|(name, value)| (name.as_str(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_every_part_of_an_operation_and_escapes_markup() {
        let document = json!({
            "info": {"title": "<b>Title</b>", "version": "1"},
            "paths": {"/a/{b}": {
                "parameters": [{"$ref": "#/components/parameters/B"}],
                "post": {
                    "summary": "Does it",
                    "description": "First `code`.\n\nSecond <script>alert(1)</script>.",
                    "requestBody": {"content": {"text/plain": {"schema": {"type": "string"}, "example": "<body>"}}},
                    "responses": {
                        "200": {"description": "Done", "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "When"}},
                            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Node"}}}},
                    },
                },
            }},
            "components": {
                "parameters": {"B": {"name": "b", "in": "path", "required": true, "schema": {"enum": ["x", "y"]}, "description": "Which"}},
                "schemas": {"Node": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string", "example": "root", "description": "Its name"},
                    "time": {"type": ["string", "null"], "format": "date-time"},
                    "children": {"type": "array", "items": {"$ref": "#/components/schemas/Node"}},
                    "by_name": {"type": "object", "additionalProperties": {"type": "number"}},
                    "either": {"oneOf": [{"type": "null"}, {"type": "integer", "minimum": 7}]},
                    "inner": {"type": "object", "properties": {"deep": {"type": "boolean"}}},
                    "both": {"allOf": [
                        {"type": "object", "properties": {"left": {"const": 1}}},
                        {"type": "object", "properties": {"right": {"const": 2}}},
                    ]},
                }}},
            },
        });
        let page = Page::new(&document).render().unwrap();
        let text = page.replace("&#38;", "&").replace("&#34;", "\"");
        for expected in [
            "&#60;b&#62;Title",
            "POST",
            "<code>/a/{b}</code>",
            "<p>First <code>code</code>.</p><p>Second &#60;script&#62;",
            "in path: \"x\" or \"y\", required",
            "Which",
            "&#60;body&#62;",
            "header: integer",
            "<a href=\"#schema-Node\">Node</a>",
            "string (date-time) or null",
            "array of <a href=\"#schema-Node\">Node</a>",
            "object whose members are number",
            "null or integer",
            "inner.deep",
            "\"name\": \"root\"",
            "\"either\": 7",
            "\"left\": 1,\n",
            "\"right\": 2\n",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(!page.contains("<script"), "{page}");
    }
}
