//! Pictures of a width and a height: what is painted, what is refused, and the operator's limits.

use crate::{
    context::{PATIENCE, case},
    worker::{SHORT_VISIBILITY, worker},
};
use e2e::{backend::FAILED, paths::binary, process::Spec};
use image::GenericImageView;

#[test]
fn width_and_height_are_painted_and_go_before_the_aspect_ratio() {
    case(|ctx| async move {
        let sized = |width: u32, height: u32| ctx.task().with("width", width).with("height", height);
        // Latents of 33x41.
        let odd = ctx.paint(&sized(264, 328)).await?;
        assert_eq!(odd.picture.dimensions(), (264, 328));
        let both = ctx.paint(&sized(264, 328).with("aspect_ratio", "1:2")).await?;
        assert!(both.picture == odd.picture, "the aspect ratio changed the picture");
        // The same size, however it is asked for.
        let (plain, named) = (ctx.paint(&ctx.task()).await?, ctx.paint(&sized(512, 512)).await?);
        assert!(plain.picture == named.picture, "512x512 is another picture by width and height");
        assert_eq!(plain.complete.body["metadata"], named.complete.body["metadata"]);
        let several = ctx.task().with("width", 256).with("height", 360).with("num_images", 2);
        let several = ctx.paint(&several).await?;
        assert_eq!(several.picture.dimensions(), (256, 360));
        Ok(())
    });
}

#[test]
fn the_operator_sets_the_limits() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("sizes", SHORT_VISIBILITY, 3).await?;
        let options = [
            ("EASEL_MIN_SIDE", "64"),
            ("EASEL_MAX_SIDE", "320"),
            ("EASEL_MAX_PIXELS", "61440"),
            ("EASEL_CONCURRENCY", "4"),
        ];
        let worker = worker(&ctx, "sizes", &queue, &options)?;
        let sized = |width: u32, height: u32| ctx.task().with("width", width).with("height", height);
        let refused = [
            (sized(56, 256), "`width` is 56, must be a multiple of 8 from 64 to 2048"),
            (sized(256, 328), "`height` is 328, must be from 64 to 320, the limits of --min-side (EASEL_MIN_SIDE)"),
            (
                sized(320, 200),
                "`width` times `height` is 64000 pixels, must be at most 61440, the limit of --max-pixels",
            ),
        ];
        let (small, usual) = (sized(320, 192), ctx.task());
        for task in refused.iter().map(|(task, _)| task).chain([&small, &usual]) {
            aws.send(&queue.url, &task.body()).await?;
        }
        for (task, said) in &refused {
            let failed = ctx.backend.end_of(task.id(), PATIENCE).await?;
            assert_eq!(failed.path, FAILED, "{}", task.body());
            assert!(failed.error_message().starts_with(said), "{}", failed.error_message());
        }
        assert_eq!(ctx.painting(&small).await?.picture.dimensions(), (320, 192));
        // What an aspect ratio means does not depend on the limits.
        assert_eq!(ctx.painting(&usual).await?.picture.dimensions(), (512, 512));
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn limits_that_contradict_each_other_are_refused_at_the_start() {
    case(|ctx| async move {
        for (options, said) in [
            (&[("EASEL_MIN_SIDE", "100")][..], "multiple of 8 from 64 to 2048"),
            (&[("EASEL_MAX_SIDE", "4096")], "EASEL_MAX_SIDE"),
            (&[("EASEL_MAX_PIXELS", "many")], "EASEL_MAX_PIXELS"),
            (&[("EASEL_MIN_SIDE", "512"), ("EASEL_MAX_SIDE", "256")], "more than --max-side (EASEL_MAX_SIDE)"),
            (
                &[("EASEL_MIN_SIDE", "512"), ("EASEL_MAX_PIXELS", "5000")],
                "--max-pixels (EASEL_MAX_PIXELS) is 5000, less than",
            ),
        ] {
            let spec = Spec::new("sizes-bad", binary("handler")?).args(["function"]).envs(ctx.env("sizes-bad")?);
            let (code, text) = ctx.output(spec.envs(options.iter().copied())).await?;
            assert_eq!(code, 64, "{options:?}: {text}");
            assert!(text.contains(said), "{text}");
        }
        Ok(())
    });
}
