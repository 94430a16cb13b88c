//! How a task's prompt is read: in chunks, and without the text encoder's last layers.

use crate::context::{Painting, TestContext, case};
use e2e::task::Task;
use serde_json::{Value, json};

/// Tags of more than 75 tokens, of which the last is new.
fn tags(last: &str) -> Value {
    let mut tags = vec!["red circle"];
    tags.extend(vec!["on white, on white"; 20]);
    tags.push(last);
    json!(tags)
}

fn task(ctx: &TestContext) -> Task {
    ctx.task().with("num_inference_steps", 2).with("seed", 7)
}

fn pixels(painting: &Painting) -> Vec<u8> {
    painting.picture.to_rgb8().into_raw()
}

#[test]
fn a_long_prompt_is_painted_to_its_end_if_the_task_says_so() {
    case(|ctx| async move {
        let mut painted = Vec::new();
        for (last, long) in
            [("blue background", false), ("green stars", false), ("blue background", true), ("green stars", true)]
        {
            let task = task(&ctx).with("prompt_tags", tags(last));
            let task = if long { task.with("long_prompt", true) } else { task };
            painted.push(pixels(&ctx.paint(&task).await?));
        }
        assert!(painted[0] == painted[1], "what is cut off changes the picture");
        assert!(painted[2] != painted[3] && painted[2] != painted[0], "the end of a long prompt changes nothing");
        // A prompt that fits, with every way to say no.
        let short = [json!(true), json!(false), Value::Null];
        let mut painted = Vec::new();
        for long in short {
            painted.push(pixels(&ctx.paint(&task(&ctx).with("long_prompt", long)).await?));
        }
        assert!(
            painted[0] == painted[1] && painted[1] == painted[2],
            "a short prompt is another one with `long_prompt`"
        );
        Ok(())
    });
}

#[test]
fn a_task_skips_layers_of_the_text_encoder() {
    case(|ctx| async move {
        let mut painted = Vec::new();
        for skip in [json!(0), Value::Null, json!(1)] {
            painted.push(pixels(&ctx.paint(&task(&ctx).with("clip_skip", skip)).await?));
        }
        assert!(painted[0] == painted[1], "0 is not the default");
        assert!(painted[1] != painted[2], "a skipped layer changes nothing");
        Ok(())
    });
}

#[test]
fn what_cannot_be_read_so_is_refused_by_name() {
    case(|ctx| async move {
        let far = "blue ".repeat(700);
        let cases = [
            ("long_prompt", json!("yes"), "`long_prompt` is a string, must be a boolean"),
            ("clip_skip", json!(12), "`clip_skip` is 12, must be an integer from 0 to 11"),
            ("clip_skip", json!(1.5), "`clip_skip` is a fraction, must be an integer from 0 to 11"),
            // The model's own limit.
            ("clip_skip", json!(2), "`clip_skip` is 2, the text encoder has 2 layers: at most 1 can be skipped"),
            (
                "prompt_tags",
                json!([far]),
                "`prompt_tags` is a text of 2800 tokens, a long prompt has at most 600 tokens: 8 chunks of 75",
            ),
            ("negative_prompt", json!(far), "`negative_prompt` is a text of 2800 tokens"),
        ];
        let sent = cases.map(|(field, value, said)| {
            let long = if field == "long_prompt" { task(&ctx) } else { task(&ctx).with("long_prompt", true) };
            (long.with(field, value), said)
        });
        ctx.refused(&sent).await
    });
}
