//! The rule for a LoRA's weights by block, in the form that diffusers' `set_adapters` takes.

use super::{Number, Result, Rule, object, wrong};
use crate::task::json::Json;
use diffusion::lora::{BlockWeights, Part, Place};
use serde_json::{Map, Value, json};

/// The most layers of one block, and the largest number of a block.
const MOST: usize = 9;
/// The names of blocks, as a pattern.
const BLOCK: &str = "^block_[0-9]$";

/// Weights of a LoRA by block.
pub(in crate::task) struct Blocks {
    /// What each weight may be.
    pub(in crate::task) weight: Number,
}

/// Reads one member of an object at its path.
type ReadMember<'r, 'a> = dyn FnMut(&str, &str, Json<'a>) -> Result<()> + 'r;

impl Rule for Blocks {
    type Output<'a> = BlockWeights;

    fn expected(&self) -> String {
        "an object with text_encoder and unet".into()
    }

    fn read(&self, path: &str, value: Json) -> Result<BlockWeights> {
        let mut weights = BlockWeights::default();
        members(path, value, &["text_encoder", "unet"], &self.expected(), &mut |name, path, value| match name {
            "text_encoder" => self.number(path, value, Part::TextEncoder, &mut weights),
            _ if value.number().is_some() => self.number(path, value, Part::Unet, &mut weights),
            _ => self.unet(path, value, &mut weights),
        })?;
        Ok(weights)
    }

    fn schema(&self) -> Map<String, Value> {
        let nullable = |kind: &str, rules: Map<String, Value>| {
            let mut schema = rules;
            schema.insert("type".into(), json!([kind, "null"]));
            Value::Object(schema)
        };
        let weight = Value::Object(self.weight.schema());
        let absent_or = |others: &[&Value]| {
            let null = [json!({ "type": "null" })];
            json!({ "anyOf": others.iter().copied().chain(&null).collect::<Vec<_>>() })
        };
        let list = |most: usize| json!({ "type": "array", "items": weight, "minItems": 1, "maxItems": most });
        let whole =
            |properties: Value| json!({ "type": "object", "properties": properties, "additionalProperties": false });
        let layers = list(MOST);
        let block = absent_or(&[&weight, &layers]);
        let blocks = json!({ "type": "object", "patternProperties": { BLOCK: block }, "additionalProperties": false });
        let side = absent_or(&[&weight, &layers, &blocks]);
        let unet = whole(json!({ "down": side, "mid": absent_or(&[&weight, &list(1)]), "up": side }));
        let text_encoder = nullable("number", self.weight.schema());
        let members = json!({ "text_encoder": text_encoder, "unet": absent_or(&[&weight, &unet]) });
        object([("type", json!("object")), ("properties", members), ("additionalProperties", json!(false))])
    }
}

impl Blocks {
    fn number(&self, path: &str, value: Json, part: Part, weights: &mut BlockWeights) -> Result<()> {
        weights.set(Place { part, block: None, layer: None }, self.weight.read(path, value)?);
        Ok(())
    }

    fn unet(&self, path: &str, value: Json, weights: &mut BlockWeights) -> Result<()> {
        let expected = format!("{} or an object with down, mid and up", self.weight.expected());
        members(path, value, &["down", "mid", "up"], &expected, &mut |name, path, value| {
            let side = match name {
                "down" => Part::Down,
                "mid" => return self.layers(path, value, Part::Mid, None, 1, weights),
                _ => Part::Up,
            };
            if !value.is_object() {
                return self.layers(path, value, side, None, MOST, weights);
            }
            members(path, value, &[], "blocks by their names, like block_1", &mut |name, path, value| {
                let number = name.strip_prefix("block_").and_then(|number| number.parse().ok());
                self.layers(path, value, side, number, MOST, weights)
            })
        })
    }

    /// One weight, or one for each layer.
    fn layers(
        &self,
        path: &str,
        value: Json,
        part: Part,
        block: Option<usize>,
        most: usize,
        weights: &mut BlockWeights,
    ) -> Result<()> {
        let expected = format!("{} or an array of 1 to {most} of them", self.weight.expected());
        let place = |layer| Place { part, block, layer };
        if value.number().is_some() {
            weights.set(place(None), self.weight.read(path, value)?);
            return Ok(());
        }
        let (items, count) = value.items(most).ok_or_else(|| wrong(path, value.kind(), &expected))?;
        if count == 0 || count > most {
            return Err(wrong(path, &format!("an array of {count}"), &expected));
        }
        for (index, item) in items.into_iter().enumerate() {
            let weight = self.weight.read(&format!("{path}[{index}]"), item)?;
            weights.set(place((count > 1).then_some(index)), weight);
        }
        Ok(())
    }
}

/// Reads the members of an object that are not null. Without names, those of blocks are known.
fn members<'a>(
    path: &str,
    value: Json<'a>,
    names: &[&str],
    expected: &str,
    read: &mut ReadMember<'_, 'a>,
) -> Result<()> {
    let is_block =
        |name: &str| name.strip_prefix("block_").is_some_and(|n| n.len() == 1 && n.as_bytes()[0].is_ascii_digit());
    for (name, member) in value.entries().ok_or_else(|| wrong(path, value.kind(), expected))? {
        let name = name.as_ref();
        if !(names.contains(&name) || (names.is_empty() && is_block(name))) {
            let known = if names.is_empty() { expected.into() } else { names.join(", ") };
            return Err(wrong(
                path,
                "an object with a member of another name",
                &format!("an object of no more than {known}"),
            ));
        }
        if !member.is_null() {
            read(name, &format!("{path}.{name}"), member)?;
        }
    }
    Ok(())
}
