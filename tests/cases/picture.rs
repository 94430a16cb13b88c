//! What a task's fields do to the picture.

use crate::context::case;
use image::GenericImageView;
use serde_json::{Value, json};

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
