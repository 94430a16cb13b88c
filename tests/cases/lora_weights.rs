//! How strongly parts of the model take a LoRA.

use crate::context::{TestContext, case};
use e2e::task::Task;
use serde_json::{Value, json};

fn task(ctx: &TestContext, weights: Value) -> Task {
    ctx.task().with("seed", 7).with("lora_weights", weights)
}

async fn pixels(ctx: &TestContext, task: &Task) -> anyhow::Result<Vec<u8>> {
    Ok(ctx.paint(task).await?.picture.to_rgb8().into_raw())
}

#[test]
fn parts_of_the_model_take_a_style_as_strongly_as_the_task_says() {
    case(|ctx| async move {
        let whole = pixels(&ctx, &task(&ctx, Value::Null)).await?;
        let half = pixels(&ctx, &task(&ctx, Value::Null).with("lora_scale", 0.5)).await?;
        let parts = [
            (json!({}), &whole),
            (json!({ "text_encoder": 1, "unet": { "down": 1, "mid": [1], "up": { "block_0": [1, 1] } } }), &whole),
            (json!({ "text_encoder": 0.5, "unet": 0.5 }), &half),
        ];
        for (weights, same) in parts {
            let painted = pixels(&ctx, &task(&ctx, weights.clone())).await?;
            assert!(painted == *same, "another picture with {weights}");
        }
        let mut seen = vec![whole, half];
        for weights in [
            json!({ "unet": { "up": 0 } }),
            json!({ "unet": { "up": { "block_0": [1, 0] } } }),
            json!({ "text_encoder": 0, "unet": 0 }),
        ] {
            let painted = pixels(&ctx, &task(&ctx, weights.clone())).await?;
            assert!(!seen.contains(&painted), "{weights} changes nothing");
            seen.push(painted);
        }
        // A second LoRA has weights of its own: at none it is as good as absent.
        let url = serde_json::from_str::<Value>(&ctx.task().body())?["lora_model_url"].clone();
        let second = |weights: Value| {
            let loras = json!([{ "lora_model_url": url, "weights": weights }]);
            task(&ctx, Value::Null).with("loras", loras)
        };
        let none = pixels(&ctx, &second(json!({ "text_encoder": 0, "unet": 0 }))).await?;
        let middle = pixels(&ctx, &second(json!({ "text_encoder": 0, "unet": { "down": 0, "up": 0 } }))).await?;
        assert!(none == seen[0] && middle != none);
        Ok(())
    });
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    case(|ctx| async move {
        let cases = [
            (json!(1), "`lora_weights` is an integer, must be an object with text_encoder and unet"),
            (json!({ "vae": 1 }), "`lora_weights` is an object with a member of another name"),
            (json!({ "unet": { "mid": 11 } }), "`lora_weights.unet.mid` is 11, must be a number from -10 to 10"),
            // The toy model's own blocks.
            (
                json!({ "unet": { "down": { "block_0": 1 } } }),
                "`lora_weights`: unet.down.block_0 is no block with attention of this model, which has unet.down.block_2, unet.mid, \
                 unet.up.block_0",
            ),
            (
                json!({ "unet": { "up": { "block_0": [1, 1, 1] } } }),
                "`lora_weights`: unet.up.block_0 is given 3 numbers and has 2 layers with attention: give 2, or one for all",
            ),
        ];
        let mut sent = cases.map(|(weights, said)| (task(&ctx, weights), said)).to_vec();
        let url = serde_json::from_str::<Value>(&ctx.task().body())?["lora_model_url"].clone();
        let second = json!([{ "lora_model_url": url, "weights": { "unet": { "up": { "block_3": 1 } } } }]);
        sent.push((
            task(&ctx, Value::Null).with("loras", second),
            "`loras[0].weights`: unet.up.block_3 is no block with attention",
        ));
        ctx.refused(&sent).await
    });
}
