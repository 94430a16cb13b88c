//! Today's names of tensors that files of other versions of diffusers and transformers have under older or newer ones.

/// The name in the text encoder with the level `text_model.`, which transformers 5 writes no longer in every file.
pub fn text_encoder_name(name: &str) -> String {
    if name.starts_with("text_model.") { name.to_string() } else { format!("text_model.{name}") }
}

/// The name in the safety checker, with one level `vision_model.` as transformers 5 writes it. Earlier versions wrote two.
pub fn safety_checker_name(name: &str) -> String {
    match name.strip_prefix("vision_model.") {
        Some(inner) if inner.starts_with("vision_model.") => inner.to_string(),
        _ => name.to_string(),
    }
}

/// The name in the VAE of today's diffusers. SD1.5's own file has older names for the attention of the mid block.
pub fn vae_name(name: &str) -> String {
    let Some((block, layer)) = name.split_once(".attentions.0.") else { return name.to_string() };
    let layer = [("query.", "to_q."), ("key.", "to_k."), ("value.", "to_v."), ("proj_attn.", "to_out.0.")]
        .iter()
        .find_map(|(old, new)| layer.strip_prefix(old).map(|rest| format!("{new}{rest}")))
        .unwrap_or_else(|| layer.to_string());
    format!("{block}.attentions.0.{layer}")
}
