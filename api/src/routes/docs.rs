//! `GET /docs`: the OpenAPI document for people.

use actix_web::HttpResponse;
use askama::Template;
use serde_json::{Map, Value};

use super::document;
use crate::{
    page::{self, STYLE},
    problem::Problem,
};

/// This document for people
#[utoipa::path(get, path = "/docs", tag = "operation", responses(
    (status = 200, description = "A page that needs nothing else", body = String, content_type = "text/html"),
))]
pub(super) async fn get() -> Result<HttpResponse, Problem> {
    let document = serde_json::to_value(document())?;
    Ok(page::response(Page::new(&document).render()?))
}

#[derive(Template)]
#[template(path = "docs.html")]
struct Page<'a> {
    style: &'static str,
    title: &'a str,
    version: &'a str,
    description: &'a str,
    operations: Vec<Operation<'a>>,
    schemas: Vec<Schema<'a>>,
}

/// A method of a path.
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

/// An answer of an operation.
struct Response<'a> {
    status: &'a str,
    description: &'a str,
    headers: Vec<Field<'a>>,
    contents: Vec<Content<'a>>,
}

/// What a body may be.
struct Content<'a> {
    media_type: &'a str,
    kind: Vec<Piece<'a>>,
    fields: Vec<Field<'a>>,
    examples: Vec<Example<'a>>,
}

/// A body, for instance.
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

/// A part of what says a type.
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
            body: contents(resolve(&operation["requestBody"], document)),
            responses: members(&operation["responses"])
                .map(|(status, response)| Response::new(status, resolve(response, document)))
                .collect(),
        }
    }
}

impl<'a> Response<'a> {
    fn new(status: &'a str, response: &'a Value) -> Self {
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
            contents: contents(response),
        }
    }
}

fn contents(holder: &Value) -> Vec<Content<'_>> {
    members(&holder["content"])
        .map(|(media_type, content)| {
            let schema = &content["schema"];
            let one = [content.get("example"), schema.get("example")];
            let named = members(&content["examples"])
                .filter_map(|(name, example)| Some((name, example.get("value")?)));
            Content {
                media_type,
                kind: kind(schema),
                fields: fields(schema),
                examples: one
                    .into_iter()
                    .flatten()
                    .map(|example| ("", example))
                    .chain(named)
                    .map(|(name, example)| Example {
                        name,
                        text: written(example),
                    })
                    .collect(),
            }
        })
        .collect()
}

/// The members of an object that is no schema of its own.
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

/// What a schema allows, in words.
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

/// An example as it would be read: text as it is, all else as JSON.
fn written(example: &Value) -> String {
    match example {
        Value::String(text) => text.clone(),
        // `#` writes with lines and indentation.
        json => format!("{json:#}"),
    }
}

/// Paragraphs, and in them what is code and what is not.
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

/// What a reference refers to, or `value` itself.
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
