//! JSON schemas: of parameters from their rows in the table of calls, of replies from the types of their inventories.

use std::collections::BTreeMap;

use utoipa::openapi::{
    ArrayBuilder, KnownFormat, ObjectBuilder, Ref, RefOr, Schema, SchemaFormat, Type,
    schema::{AdditionalProperties, SchemaType},
};
use vipgate_api::{
    ApiError, Call, Resource,
    call::{Answer, Kind, Param, Rule},
    inventory::NamedSchema,
};

/// 32 hexadecimal digits, in either case.
const UUID: &str = "^[0-9a-fA-F]{32}$";

/// The schemas that operations refer to, by name.
#[derive(Default)]
pub(super) struct Schemas(pub(super) BTreeMap<String, RefOr<Schema>>);

impl Schemas {
    /// The reply of a call that succeeded. With `chosen`, its inventories may lack members that the caller did not choose.
    pub(super) fn reply(&mut self, call: &Call, chosen: bool) -> Ref {
        match call.answer {
            Answer::Empty => self.put("EmptyReply", reply()),
            Answer::Inventory(resource) => {
                let inventory = self.refer(resource.inventory_schema());
                // Not required: another call may delete the resource before the result of the job is printed.
                self.put(&format!("{}Reply", stem(resource)), reply().property("inventory", inventory))
            }
            Answer::Inventories(resource) if chosen => {
                let inventories = ArrayBuilder::new().items(RefOr::Ref(self.selection(resource)));
                let total = number(KnownFormat::Int64).minimum(Some(0)).description(Some(
                    "How many there are, on whatever page: with `count`, which leaves out the rest, or `replyWithCount`.",
                ));
                let reply = reply().property("inventories", inventories).property("total", total);
                self.put(&format!("{}QueryReply", stem(resource)), reply)
            }
            Answer::Inventories(resource) => {
                let inventories = ArrayBuilder::new().items(RefOr::Ref(self.refer(resource.inventory_schema())));
                let reply = reply().property("inventories", inventories).required("inventories");
                self.put(&format!("{}ListReply", stem(resource)), reply)
            }
            Answer::Members(members) => {
                self.put(&format!("{}Reply", call.api.name()), with(reply(), members.iter().copied()))
            }
        }
    }

    /// The reply of a call that failed.
    pub(super) fn error(&mut self) -> Ref {
        let code = self.refer(NamedSchema::of::<ApiError>());
        self.put("ErrorReply", reply().property("error", code).required("error"))
    }

    /// The reply of an asynchronous call.
    pub(super) fn accepted(&mut self) -> Ref {
        let location = text().format(Some(SchemaFormat::Custom("uri".into()))).description(Some("The URL to poll."));
        self.put("Accepted", ObjectBuilder::new().property("location", location).required("location"))
    }

    /// The inventory with all members optional.
    fn selection(&mut self, resource: Resource) -> Ref {
        let mut schema = resource.inventory_schema();
        schema.name = format!("{}Selection", stem(resource));
        if let RefOr::T(Schema::Object(inventory)) = &mut schema.schema {
            inventory.required.clear();
        }
        self.refer(schema)
    }

    fn refer(&mut self, schema: NamedSchema) -> Ref {
        let NamedSchema { name, schema, others } = schema;
        let reference = Ref::from_schema_name(&name);
        for (name, schema) in others.into_iter().chain([(name, schema)]) {
            self.0.insert(name, without_nulls(schema));
        }
        reference
    }

    fn put(&mut self, name: &str, schema: ObjectBuilder) -> Ref {
        self.0.insert(name.to_owned(), schema.into());
        Ref::from_schema_name(name)
    }
}

/// The name of the inventory without `Inventory`.
fn stem(resource: Resource) -> String {
    let name = resource.inventory_schema().name;
    name.strip_suffix("Inventory").unwrap_or(&name).to_owned()
}

/// Makes members not nullable: replies leave out members without a value.
fn without_nulls(schema: RefOr<Schema>) -> RefOr<Schema> {
    let RefOr::T(schema) = schema else { return schema };
    let present = |r#type: SchemaType| match r#type {
        SchemaType::Array(types) => match types.into_iter().find(|one| *one != Type::Null) {
            Some(one) => SchemaType::Type(one),
            None => SchemaType::AnyValue,
        },
        other => other,
    };
    match schema {
        Schema::Object(mut object) => {
            object.schema_type = present(object.schema_type);
            for (_, property) in &mut object.properties {
                *property = without_nulls(property.clone());
            }
            Schema::Object(object).into()
        }
        Schema::OneOf(one_of) => {
            let null = |item: &RefOr<Schema>| matches!(item, RefOr::T(Schema::Object(object)) if object.schema_type == SchemaType::Type(Type::Null));
            match one_of.items.iter().find(|item| !null(item)) {
                Some(item) if one_of.items.iter().any(null) => item.clone(),
                _ => Schema::OneOf(one_of).into(),
            }
        }
        other => other.into(),
    }
}

/// The object with these parameters as further members.
pub(super) fn with(object: ObjectBuilder, params: impl IntoIterator<Item = Param>) -> ObjectBuilder {
    params.into_iter().fold(object, |object, param| {
        let object = object.property(param.name, value(&param));
        if param.required { object.required(param.name) } else { object }
    })
}

/// The schema of the values of a parameter.
pub(super) fn value(param: &Param) -> Schema {
    match param.kind {
        Kind::Text => ruled_text(param).into(),
        Kind::Int => ruled_number(param, KnownFormat::Int32).into(),
        Kind::Long => ruled_number(param, KnownFormat::Int64).into(),
        Kind::Bool => flag().into(),
        Kind::TextList => texts(param.rule).into(),
        Kind::ListMap => map(texts(param.rule)).min_properties(least(param.rule)).into(),
    }
}

fn ruled_text(param: &Param) -> ObjectBuilder {
    let text = text().min_length(param.required.then_some(1));
    match param.rule {
        Some(Rule::MaxLength(most)) => text.max_length(Some(most)),
        Some(Rule::OneOf(valid)) => text.enum_values(Some(valid.iter().copied())),
        Some(Rule::OneOfAnyCase(valid)) => {
            text.enum_values(Some(valid.iter().copied())).description(Some("In any case."))
        }
        Some(Rule::Uuid) => text.pattern(Some(UUID)),
        Some(Rule::Range(..) | Rule::NotEmpty | Rule::MaxItems(_)) | None => text,
    }
}

fn ruled_number(param: &Param, format: KnownFormat) -> ObjectBuilder {
    match param.rule {
        Some(Rule::Range(low, high)) => number(format).minimum(Some(low)).maximum(Some(high)),
        _ => number(format),
    }
}

fn texts(rule: Option<Rule>) -> ArrayBuilder {
    let most = if let Some(Rule::MaxItems(most)) = rule { Some(most) } else { None };
    ArrayBuilder::new().items(RefOr::T(text().min_length(Some(1)).into())).min_items(least(rule)).max_items(most)
}

fn least(rule: Option<Rule>) -> Option<usize> {
    (rule == Some(Rule::NotEmpty)).then_some(1)
}

pub(super) fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

pub(super) fn number(format: KnownFormat) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer).format(Some(SchemaFormat::KnownFormat(format)))
}

pub(super) fn flag() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Boolean)
}

fn map(values: impl Into<RefOr<Schema>>) -> ObjectBuilder {
    ObjectBuilder::new().additional_properties(Some(AdditionalProperties::RefOr(values.into())))
}

/// An object with the member that all replies may have.
fn reply() -> ObjectBuilder {
    let schema = map(text()).description(Some("The place of each object in this reply -> its Java class."));
    ObjectBuilder::new().property("schema", schema)
}
