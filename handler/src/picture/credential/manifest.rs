//! What a credential says: the words of EXIF and XMP, under the names that C2PA has for them. No prompt where those have none, and
//! no time of day.

use crate::{
    picture::provenance::{DIGITAL_SOURCE_TYPE, Provenance},
    task::Format,
};
use serde_json::{Map, Value, json};

/// The assertion for what C2PA has no name for; its fields are called as in the XMP.
pub(super) const GENERATION: &str = "org.easel.generation";

/// The manifest, as the builder takes it.
pub(super) fn definition(provenance: &Provenance, format: Format) -> Value {
    let easel = json!({ "name": "Easel", "version": env!("CARGO_PKG_VERSION") });
    let created = json!({
        "action": "c2pa.created",
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "softwareAgent": easel.clone(),
    });
    let mut definition = json!({
        "claim_generator_info": [easel],
        "assertions": [
            { "label": "c2pa.actions.v2", "created": true, "data": { "actions": [created], "allActionsIncluded": true } },
            { "label": GENERATION, "created": true, "data": generation(provenance) },
        ],
    });
    if let Some(id) = provenance.origin.generation_id {
        definition["title"] = title(id, provenance.image.0, format).into();
    }
    definition
}

/// The file's name in the bucket.
fn title(id: i64, number: usize, format: Format) -> String {
    let ending = format.extension();
    if number == 1 { format!("gen_{id}.{ending}") } else { format!("gen_{id}_{number}.{ending}") }
}

fn generation(provenance: &Provenance) -> Value {
    let settings = provenance.settings().into_iter().map(|(name, value)| (name.to_string(), Value::from(value)));
    let mut fields: Map<String, Value> = settings.collect();
    let (prompt, negative) = provenance.prompts();
    for (name, text) in [("Artist", provenance.artist()), ("Prompt", prompt), ("NegativePrompt", negative)] {
        fields.extend(text.map(|text| (name.to_string(), text.into())));
    }
    if !provenance.loras.is_empty() {
        let lora =
            |applied: &diffusion::lora::AppliedLora| json!({ "Sha256": applied.lora.sha256(), "Scale": applied.scale });
        fields.insert("Loras".into(), provenance.loras.iter().map(lora).collect());
    }
    fields.into()
}
