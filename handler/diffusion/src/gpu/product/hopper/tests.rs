//! Which kernels for Hopper take which problems. Needs no GPU.

use super::*;
use crate::gpu::{
    conv::{ConvShape, PhasesShape},
    matmul::{MatmulShape, Operands},
};

/// Of an H100 and an H200.
const MULTIPROCESSORS: usize = 132;

fn product(rows: usize, inner: usize, columns: usize) -> Problem {
    Problem::of_matmul(
        &MatmulShape::linear(Dtype::F16, rows, columns, inner),
        &Operands::product(1 << 20, 2 << 20, 3 << 20),
    )
}

/// One after the other, each with its own weights.
fn products(problems: usize, rows: usize, inner: usize, columns: usize) -> Problem {
    Problem::of_matmul(
        &MatmulShape { batch: problems, ..MatmulShape::linear(Dtype::F16, rows, columns, inner) },
        &Operands::product(1 << 20, 2 << 20, 3 << 20),
    )
}

fn conv(batch: usize, side: usize, from: usize, to: usize, stride: usize) -> Problem {
    let shape = ConvShape {
        dtype: Dtype::F16,
        batch,
        height: side,
        width: side,
        channels_in: from,
        channels_out: to,
        side: 3,
        stride,
        padding: 1,
        past: 0,
        open: false,
    };
    Problem::of_conv(&shape, 1 << 20, 2 << 20, 3 << 20)
}

/// Of a map that is read as twice as high and wide.
fn phases(batch: usize, side: usize, channels: usize) -> Problem {
    let (height, width, made, dtype) = (side, side, (0, side), Dtype::F16);
    let shape = PhasesShape { dtype, batch, height, width, made, channels_in: channels, channels_out: channels };
    Problem::of_phases(&shape, 1 << 20, 2 << 20, 3 << 20)
}

fn chosen(problem: &Problem) -> (String, [usize; 3]) {
    let plan = HopperPlan::on(problem, MULTIPROCESSORS).unwrap();
    (plan.launch.name, plan.launch.grid)
}

#[test]
fn the_unets_problems_fill_the_gpu_in_one_round_where_that_was_measured_to_be_best() {
    for (problem, name, grid) in [
        (conv(2, 64, 320, 320, 1), "patches_160", [64, 2, 1]),
        (conv(2, 32, 1920, 640, 1), "patches_160", [16, 4, 2]),
        (conv(2, 16, 1280, 1280, 1), "patches_80", [4, 16, 2]),
        (conv(2, 8, 1280, 1280, 1), "patches_80", [1, 16, 6]),
        (conv(2, 16, 1280, 1280, 2), "windows_80", [1, 16, 6]),
        (conv(1, 64, 512, 512, 1), "patches_128", [32, 4, 1]),
        (phases(2, 32, 640), "patches_160", [64, 4, 1]),
        (phases(2, 16, 1280), "patches_160", [16, 8, 1]),
        (phases(2, 8, 1280), "patches_80", [4, 16, 2]),
        (product(8192, 320, 320), "rows_160", [64, 2, 1]),
        (product(2048, 640, 640), "rows_80", [16, 8, 1]),
        (product(512, 1280, 1280), "rows_80", [4, 16, 1]),
        (product(512, 1280, 3840), "rows_128", [4, 30, 1]),
        (product(512, 5120, 1280), "rows_80", [4, 16, 2]),
    ] {
        let (got, blocks) = chosen(&problem);
        assert_eq!((got.as_str(), blocks), (format!("product_hopper_f16_{name}").as_str(), grid), "{problem:?}");
    }
}

#[test]
fn of_more_blocks_than_multiprocessors_two_are_at_work_on_one() {
    for problem in [
        conv(2, 96, 320, 320, 1),
        conv(2, 96, 640, 640, 1),
        // Those of the tests on a GPU.
        conv(2, 96, 64, 320, 1),
        conv(2, 48, 128, 1280, 1),
        conv(2, 32, 64, 1280, 1),
        conv(2, 64, 320, 1280, 1),
        conv(2, 96, 64, 8, 1),
        conv(2, 96, 64, 320, 2),
        phases(2, 32, 1280),
        product(18_432, 320, 320),
        // Of four pictures at once.
        conv(8, 64, 320, 8, 1),
        conv(8, 64, 320, 320, 2),
    ] {
        let (name, grid) = chosen(&problem);
        assert!(name.ends_with("_of_two"), "{name} {grid:?}");
    }
}

#[test]
fn products_of_two_prompts_have_tiles_of_their_own_rows_and_a_softmax_has_whole_heads() {
    let softmax = |problem: Problem| Problem { ending: Ending::Softmax { counted: 77 }, ..problem };
    for (problem, name, grid) in [
        (softmax(products(2, 4096, 320, 640)), "softmax_160_of_two", [64, 4, 1]),
        (softmax(products(2, 1024, 640, 640)), "softmax_80", [16, 8, 1]),
        (softmax(products(2, 256, 1280, 640)), "softmax_80", [4, 8, 1]),
        (softmax(products(2, 64, 1280, 640)), "softmax_80", [2, 8, 1]),
        (softmax(product(4096, 320, 640)), "softmax_80", [32, 8, 1]),
        (products(2, 4096, 640, 320), "rows_160", [64, 2, 1]),
        (products(2, 1024, 640, 640), "rows_80", [16, 8, 1]),
        (products(3, 129, 640, 640), "rows_80", [6, 8, 1]),
    ] {
        let (got, blocks) = chosen(&problem);
        assert_eq!((got.as_str(), blocks), (format!("product_hopper_f16_{name}").as_str(), grid), "{problem:?}");
    }
    // A block goes on to other columns of rows that no longer are in the cache.
    let large = softmax(products(8, 4096, 320, 640));
    assert_eq!(chosen(&large), ("product_hopper_f16_softmax_160_of_two".into(), [4, 256, 1]));
    // Its blocks load themselves.
    let Launch { block, shared, .. } = HopperPlan::on(&large, MULTIPROCESSORS).unwrap().launch;
    assert_eq!((block, shared), (PRODUCT_HOPPER_THREADS_ITSELF, PRODUCT_HOPPER_SHARED_ITSELF));
    // Rows that do not follow those of the problem before.
    let apart = Problem { a_batch: 1 << 20, ..products(2, 4096, 320, 640) };
    assert_eq!(HopperPlan::on(&apart, MULTIPROCESSORS), None);
    assert!(SOFTMAX_TILES.iter().all(|tile| tile.1 == ROWS && tile.2.is_multiple_of(80)));
}

#[test]
fn what_the_kernels_do_not_take_is_left_to_others() {
    let good = conv(2, 64, 320, 320, 1);
    assert!(HopperPlan::on(&good, MULTIPROCESSORS).is_some());
    for (why, bad) in [
        ("f32", Problem { dtype: Dtype::F32, ..good }),
        ("a batch", Problem { problems: 2, ..good }),
        ("f32 sums", Problem { wide: true, ..good }),
        ("W across", Problem { crossed: true, ..good }),
        ("a gate", Problem { ending: Ending::Gated, ..good }),
        ("an odd address", Problem { a: good.a + 2, ..good }),
        ("few channels", conv(2, 64, 8, 320, 1)),
        ("few rows", product(2, 320, 1280)),
        ("a stride of 3", Problem { stride: 3, ..good }),
        ("phases whose weights are apart", Problem { w_batch: 1 << 20, ..phases(2, 32, 640) }),
    ] {
        assert_eq!(HopperPlan::on(&bad, MULTIPROCESSORS), None, "{why}");
    }
}

#[test]
fn patches_of_small_maps_are_those_of_two_images() {
    let tiling = |problem: &Problem| HopperPlan::on(problem, MULTIPROCESSORS).unwrap().tiling;
    let small = tiling(&conv(2, 8, 1280, 1280, 1));
    assert_eq!([small.across, small.down, small.images, small.tiles_across, small.tiles_down], [0, 0, 1, 1, 1]);
    let large = tiling(&conv(2, 64, 320, 320, 1));
    assert_eq!([large.across, large.down, large.images, large.tiles_across, large.tiles_down], [0, 1, 0, 8, 4]);
    assert_eq!((large.steps, large.first_steps), (45, 5));
    // Four phases, of which each is a map of the size that is read.
    let problem = phases(2, 64, 640);
    assert_eq!(tiling(&problem).tiles(&problem, PATCHES), 4 * 64);
    assert_eq!(tiling(&problem).steps, 4 * 10);
    assert_eq!(
        Tiling {
            across: 1,
            down: 2,
            images: 3,
            tiles_across: 4,
            tiles_down: 5,
            steps: 6,
            first_steps: 7,
            columns_first: 8
        }
        .words(),
        [2 << 32 | 1, 4 << 32 | 3, 6 << 32 | 5, 8 << 32 | 7]
    );
}

#[test]
fn moments_are_taken_where_tiles_fit_maps_and_groups() {
    let chunks = |problem: &Problem| HopperPlan::on(problem, MULTIPROCESSORS).unwrap().measured(problem, 32);
    assert_eq!(chunks(&conv(2, 64, 320, 320, 1)), Some((32, 64)));
    // Split along k: 16 rows each.
    assert_eq!(chunks(&conv(2, 8, 1280, 1280, 1)), Some((32, 4)));
    // More chunks than a norm should merge, which a kernel merges first.
    assert_eq!(chunks(&conv(1, 512, 128, 128, 1)), Some((32, 4096)));
    // Part of a tile is outside of the map, groups of an odd number of channels, and so many chunks that cannot be merged in equal parts.
    assert_eq!(chunks(&conv(2, 36, 320, 320, 1)), None);
    assert_eq!(chunks(&conv(2, 64, 320, 96, 1)), None);
    assert_eq!(chunks(&conv(1, 240, 128, 128, 1)), None);
}

#[test]
fn moments_come_in_the_parts_of_groups_that_the_unets_joined_maps_need() {
    let chunks =
        |problem: &Problem, groups| HopperPlan::on(problem, MULTIPROCESSORS).unwrap().measured(problem, groups);
    let projected =
        |side: usize, channels: usize| Problem { out_map: [side; 2], ..product(2 * side * side, channels, channels) };
    for (problem, groups) in [
        (phases(2, 8, 1280), 32),
        (projected(16, 1280), 64),
        (phases(2, 16, 1280), 64),
        (projected(32, 640), 64),
        (phases(2, 32, 640), 64),
        (projected(64, 320), 32),
    ] {
        let found = chunks(&problem, groups);
        let places = problem.area() * problem.phases();
        assert!(found.is_some_and(|(_, found)| places.is_multiple_of(found)), "{found:?} {problem:?}");
    }
}

#[test]
fn a_problem_goes_to_the_tile_and_splits_that_the_model_finds_fastest() {
    // With one multiprocessor there can be no splits.
    assert_eq!(HopperPlan::on(&conv(2, 8, 1280, 1280, 1), 1).unwrap().splits, 1);
    assert!(TILES.iter().all(|tile| tile.2.is_multiple_of(8) && tile.1 <= PATCHES && (1..=2).contains(&tile.3)));
    for mode in [ROWS, WINDOWS, PATCHES] {
        assert!(TILES.iter().any(|tile| tile.1 == mode));
    }
}
