//! A picture's provenance as an XMP packet: Dublin Core, XMP Basic, IPTC Extension (2025.1 for the `AI…` properties), and what
//! no standard has a word for under a namespace of Easel's own. Not padded, since nobody edits it in place.

use super::provenance::{DIGITAL_SOURCE_TYPE, GENERATOR, Provenance};
use xmp_writer::{CustomNamespace, Namespace, RdfCollectionType, XmpWriter};

/// A name and no address: nothing stands there.
const EASEL: &str = "urn:easel:picture:1.0/";

/// Writes the packet.
pub(super) fn packet(provenance: &Provenance) -> String {
    let own = || Namespace::Custom(Box::new(CustomNamespace::new("Easel", "easel", EASEL)));
    let iptc = || {
        let address = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/";
        Namespace::Custom(Box::new(CustomNamespace::new("IPTC Extension", "Iptc4xmpExt", address)))
    };
    let mut writer = XmpWriter::new();
    writer.creator_tool(GENERATOR);
    if let Some(artist) = &provenance.artist() {
        writer.creator([artist.as_str()]);
    }
    if let Some(created) = &provenance.created() {
        writer.element("CreateDate", Namespace::Xmp).value(created.as_str());
        writer.element("date", Namespace::DublinCore).ordered_array([created.as_str()]);
    }
    writer.element("DigitalSourceType", iptc()).value(DIGITAL_SOURCE_TYPE);
    writer.element("AISystemUsed", iptc()).value(provenance.model.name.as_str());
    if let Some(revision) = &provenance.model.revision {
        writer.element("AISystemVersionUsed", iptc()).value(revision.as_str());
    }
    let (prompt, negative) = provenance.prompts();
    if let Some(prompt) = &prompt {
        writer.element("AIPromptInformation", iptc()).value(prompt.as_str());
        writer.element("PromptWeighting", own()).value(provenance.request.prompt_weighting.to_string().as_str());
    }
    if let Some(negative) = &negative {
        writer.element("NegativePrompt", own()).value(negative.as_str());
    }
    for (name, value) in &provenance.settings() {
        writer.element(name, own()).value(value.as_str());
    }
    if !provenance.loras.is_empty() {
        let mut loras = writer.element("Loras", own()).array(RdfCollectionType::Seq);
        for applied in provenance.loras {
            let mut lora = loras.element().obj();
            lora.element("Sha256", own()).value(applied.lora.sha256());
            lora.element("Scale", own()).value(applied.scale);
        }
    }
    writer.finish(None)
}
