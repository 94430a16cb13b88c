//! What a task's fields do to the picture.

use crate::context::{case, model};
use anyhow::{Context, Result};
use e2e::aws::MODELS;
use image::GenericImageView;
use serde_json::{Value, json};
use std::fs;

#[test]
fn a_missing_seed_is_42_and_the_same_seed_paints_the_same_picture() {
    case(|ctx| async move {
        let (missing, explicit) = (ctx.task(), ctx.task().with("seed", 42));
        let (missing, explicit) = (ctx.paint(&missing).await?, ctx.paint(&explicit).await?);
        assert_eq!(missing.complete.body["metadata"]["seed"], 42);
        assert_eq!(explicit.complete.body["metadata"]["seed"], 42);
        assert!(missing.picture == explicit.picture, "the same seed gave two pictures");
        Ok(())
    });
}

#[test]
fn seed_0_is_a_seed_of_its_own() {
    case(|ctx| async move {
        let (zero, other) = (ctx.task().with("seed", 0), ctx.task());
        let (zero, other) = (ctx.paint(&zero).await?, ctx.paint(&other).await?);
        assert_eq!(zero.complete.body["metadata"]["seed"], 0);
        assert!(zero.picture != other.picture, "seed 0 painted what seed 42 paints");
        Ok(())
    });
}

fn size(aspect_ratio: &'static str, wanted: (u32, u32)) {
    case(|ctx| async move {
        let painting = ctx.paint(&ctx.task().with("aspect_ratio", aspect_ratio)).await?;
        assert_eq!(painting.picture.dimensions(), wanted);
        Ok(())
    });
}

#[test]
fn aspect_ratio_1_1_is_512x512() {
    size("1:1", (512, 512));
}

#[test]
fn aspect_ratio_2_2_is_768x768() {
    size("2:2", (768, 768));
}

#[test]
fn aspect_ratio_1_2_is_512x1024() {
    size("1:2", (512, 1024));
}

#[test]
fn an_unknown_aspect_ratio_is_512x512() {
    size("16:9", (512, 512));
}

#[test]
fn unknown_fields_are_ignored() {
    case(|ctx| async move {
        let plain = ctx.paint(&ctx.task()).await?;
        let task = ctx.task().with("priority", "high").with("tenant", json!({ "id": 7, "tags": [1, null] }));
        let painting = ctx.paint(&task.with("callback", Value::Null)).await?;
        assert!(painting.picture == plain.picture, "a field that nobody knows changed the picture");
        Ok(())
    });
}

#[test]
fn the_artists_name_is_drawn_at_the_bottom_and_nowhere_else() {
    case(|ctx| async move {
        let one = ctx.paint(&ctx.task().with("artist_name", "Ada Kowalska")).await?;
        let other = ctx.paint(&ctx.task().with("artist_name", "Łucja 김")).await?;
        let (one, other) = (one.picture.to_rgb8(), other.picture.to_rgb8());
        // JPEG spreads a pixel over a block of 16 pixels at most.
        let top = |picture: &image::RgbImage| picture.view(0, 0, 512, 384).to_image().into_raw();
        assert!(top(&one) == top(&other), "the signature reached the upper three quarters");
        let bottom = |picture: &image::RgbImage| picture.view(256, 384, 256, 128).to_image().into_raw();
        assert!(bottom(&one) != bottom(&other), "two artists, one signature");
        Ok(())
    });
}

#[test]
fn the_lora_changes_the_picture() {
    case(|ctx| async move {
        let with = ctx.paint(&ctx.task()).await?;
        let without = ctx.paint(&ctx.task().with("lora_scale", 0)).await?;
        assert!(with.picture != without.picture, "the LoRA changed nothing");
        let again = ctx.paint(&ctx.task()).await?;
        assert!(with.picture == again.picture, "an earlier task's scale is still in the model");
        Ok(())
    });
}

/// A safetensors file with this many vectors for the model of the cases.
fn inversion(vectors: usize) -> Result<Vec<u8>> {
    let config: Value = serde_json::from_slice(&fs::read(model().join("text_encoder/config.json"))?)?;
    let width = config["hidden_size"].as_u64().context("hidden_size")? as usize;
    let numbers = (0..vectors * width).flat_map(|index| (((index * 37) % 101) as f32 / 50.0 - 1.0).to_le_bytes());
    let tensor = json!({ "dtype": "F32", "shape": [vectors, width], "data_offsets": [0, 4 * vectors * width] });
    let header = json!({ "<cat-toy>": tensor }).to_string();
    let length = (header.len() as u64).to_le_bytes();
    Ok(length.into_iter().chain(header.into_bytes()).chain(numbers).collect())
}

#[test]
fn a_textual_inversion_changes_pictures_with_its_token_and_no_others() {
    case(|ctx| async move {
        let one = ctx.stack.aws.put(MODELS, "words/one.safetensors", inversion(1)?).await?;
        let two = ctx.stack.aws.put(MODELS, "words/two.safetensors", inversion(2)?).await?;
        let task = |tag: &str| ctx.task().with("prompt_tags", json!([tag]));
        let (word, plain) = (ctx.paint(&task("a <cat-toy>")).await?, ctx.paint(&task("a house")).await?);
        let with = |tag: &str, files: Value| task(tag).with("textual_inversions", files);
        let first = ctx.paint(&with("a <cat-toy>", json!([{ "url": one }]))).await?;
        let second = ctx.paint(&with("a <cat-toy>", json!([{ "url": two }]))).await?;
        let renamed = ctx.paint(&with("a myword", json!([{ "url": one, "token": "myword" }]))).await?;
        assert!(first.picture != word.picture, "the textual inversion changed nothing");
        assert!(first.picture != second.picture, "one vector and two paint the same");
        assert!(first.picture == renamed.picture, "another word for it paints another picture");
        let unused = ctx.paint(&with("a house", json!([{ "url": one }]))).await?;
        assert!(unused.picture == plain.picture, "it changed a picture without its token");
        let again = ctx.paint(&task("a <cat-toy>")).await?;
        assert!(again.picture == word.picture, "an earlier task's textual inversion is still in the model");
        Ok(())
    });
}
