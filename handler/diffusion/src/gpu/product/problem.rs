//! What a kernel is asked to compute, as it reads it.

use crate::gpu::{
    Dtype,
    conv::{ConvShape, PhasesShape},
    matmul::{MatmulShape, Operands},
};

/// What is done to a sum last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing.
    AsItIs,
    /// Columns `c` and `C + c` become column `c`: the first times the GELU of the second.
    Gated,
    /// A softmax of the first so many of each `SOFTMAX_SLOTS` columns; the others become zero.
    Softmax { counted: usize },
}

/// `out[m][n] = ending(alpha[n] * (scale[m] * sum over k of A[m][k] * W[n][k] + bias[n]) + table[row of step][n] + onto[m][n])`, where the scale
/// is 1 unless rows of A are to be normalised. Addresses, of which those that may be missing are then 0. `kernels/product.cuh` says
/// what each field is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Problem {
    /// Of all arrays, apart from `step`, and from `out` if it is `wide`.
    pub dtype: Dtype,
    /// How many problems, at the strides below.
    pub problems: usize,
    pub a: u64,
    pub more: u64,
    pub w: u64,
    pub bias: u64,
    pub table: u64,
    pub step: u64,
    pub onto: u64,
    pub out: u64,
    /// f32, `[splits, rows, columns]`, or 0.
    pub partials: u64,
    /// f32, `[images, groups, chunks, 2]`, or 0.
    pub moments: u64,
    /// Of A's rows, if they are to be normalised: f32, `[row_parts, sum_rows, 2]`, or 0.
    pub a_sums: u64,
    /// Of the output's: f32, `[parts, rows of all problems, 2]` with as many parts as a kernel says, or 0.
    pub row_sums: u64,
    pub a_batch: usize,
    pub w_batch: usize,
    pub out_batch: usize,
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
    pub a_row: usize,
    pub more_row: usize,
    pub w_row: usize,
    pub out_row: usize,
    /// Channels of the first map, and of the second.
    pub channels: [usize; 2],
    /// Height and width of the map in memory.
    pub map: [usize; 2],
    /// Of the output, or of one of its phases.
    pub out_map: [usize; 2],
    pub side: usize,
    pub stride: usize,
    /// Zeros above, and to the left.
    pub padding: [usize; 2],
    /// Whether the problems are four phases.
    pub phased: bool,
    /// Rows of the table.
    pub steps: usize,
    pub ending: Ending,
    /// Groups of the moments, and chunks of an image's rows.
    pub measured: [usize; 2],
    /// Parts of A's rows that were summed up.
    pub row_parts: usize,
    /// Rows that were summed up: all of A's, or as many that repeat.
    pub sum_rows: usize,
    /// What is added to the variance of A's rows.
    pub eps: f32,
    /// Of the first `scaled` columns; of the others it is 1.
    pub alpha: f32,
    pub scaled: usize,
    /// Whether `out` is f32, and the scaled sums alone.
    pub wide: bool,
    /// Whether W is `[inner, columns]`.
    pub crossed: bool,
}

/// Of k, a step of the kernels on tensor cores.
const STEP: usize = 64;
/// Phases of a map that is read as twice as high and wide, and the side of their windows.
const PHASES: usize = 4;
const PHASE_SIDE: usize = 2;
/// Between rows some kernels count bytes in 32 bits.
const LONGEST_ROW: usize = 1 << 24;

impl Problem {
    /// A product.
    pub(crate) fn of_matmul(shape: &MatmulShape, at: &Operands) -> Self {
        Self {
            dtype: shape.dtype,
            problems: shape.batch,
            a: at.a,
            more: 0,
            w: at.w,
            bias: at.bias.unwrap_or(0),
            table: 0,
            step: 0,
            onto: at.onto.unwrap_or(0),
            out: at.out,
            partials: 0,
            moments: 0,
            a_sums: 0,
            row_sums: 0,
            a_batch: shape.a_stride,
            w_batch: shape.w_stride,
            out_batch: shape.out_stride,
            rows: shape.rows,
            columns: shape.columns,
            inner: shape.inner,
            a_row: shape.a_row,
            more_row: 0,
            w_row: shape.w_row,
            out_row: shape.out_row,
            channels: [shape.inner, 0],
            map: [1, shape.rows],
            out_map: [1, shape.rows],
            side: 1,
            stride: 1,
            padding: [0; 2],
            phased: false,
            steps: 0,
            ending: Ending::AsItIs,
            measured: [0; 2],
            row_parts: 0,
            sum_rows: 0,
            eps: 0.0,
            alpha: f32::from_bits(shape.alpha_bits),
            scaled: shape.columns,
            wide: shape.out != shape.dtype,
            crossed: shape.w_transposed,
        }
    }

    /// A convolution.
    pub(crate) fn of_conv(shape: &ConvShape, x: u64, w: u64, y: u64) -> Self {
        let (out_height, out_width) = (shape.out_height(), shape.out_width());
        let (channels, rows) = (shape.channels_in, shape.batch * out_height * out_width);
        let inner = shape.side * shape.side * channels;
        let product =
            MatmulShape { a_row: channels, ..MatmulShape::linear(shape.dtype, rows, shape.channels_out, inner) };
        Self {
            channels: [channels, 0],
            map: [shape.height, shape.width],
            out_map: [out_height, out_width],
            side: shape.side,
            stride: shape.stride,
            padding: [shape.padding_down(), shape.padding],
            ..Self::of_matmul(&product, &Operands::product(x, w, y))
        }
    }

    /// A convolution of a map that is read as twice as high and wide.
    pub(crate) fn of_phases(shape: &PhasesShape, x: u64, w: u64, y: u64) -> Self {
        let &PhasesShape { dtype, batch, height, width, made: (first, rows), channels_in, channels_out } = shape;
        let inner = PHASE_SIDE * PHASE_SIDE * channels_in;
        let row = PHASES * inner;
        let product = MatmulShape {
            batch: PHASES,
            a_row: channels_in,
            w_row: row,
            a_stride: 0,
            w_stride: inner,
            out_stride: 0,
            ..MatmulShape::linear(dtype, batch * rows * width, channels_out, inner)
        };
        Self {
            channels: [channels_in, 0],
            map: [height, width],
            out_map: [rows, width],
            side: PHASE_SIDE,
            padding: [1 - first, 1],
            phased: true,
            ..Self::of_matmul(&product, &Operands::product(x, w, y))
        }
    }

    /// How many phases the output has.
    pub(super) fn phases(&self) -> usize {
        if self.phased { PHASES } else { 1 }
    }

    /// Rows of an image of the output, or of one of its phases.
    pub(crate) fn area(&self) -> usize {
        self.out_map[0] * self.out_map[1]
    }

    /// In how many equal parts the channels of a group are measured by a tile of so many columns: the fewest, each of a multiple of `step`
    /// channels.
    pub(super) fn parts_of_groups(&self, groups: usize, columns: usize, step: usize) -> Option<usize> {
        let channels = self.columns.checked_div(groups).filter(|channels| channels * groups == self.columns)?;
        let fits = |part: usize| part.is_multiple_of(step) && columns.is_multiple_of(part);
        (1..=channels).find(|parts| channels.is_multiple_of(*parts) && fits(channels / parts))
    }

    /// Whether every address, row and batch is a multiple of 8 elements, or of 8 of the output's.
    pub(super) fn is_whole(&self) -> bool {
        let bytes = (8 * self.dtype.bytes()) as u64;
        let addresses = [self.a, self.more, self.w, self.bias, self.table, self.onto, self.out];
        let mut lengths = vec![self.inner, self.columns, self.a_row, self.more_row, self.w_row, self.out_row];
        lengths.extend(self.channels);
        if self.problems > 1 {
            lengths.extend([self.a_batch, self.w_batch, self.out_batch]);
        }
        addresses.iter().all(|address| address.is_multiple_of(bytes.min(16)))
            && lengths.iter().all(|length| length.is_multiple_of(8))
    }

    /// Whether the faster kernels take it, apart from the number of columns: next rows of A are next places of a map, and each step
    /// along k is of one place of the window and of one map.
    pub(super) fn is_steady(&self) -> bool {
        // Between images are other rows where heights differ.
        let one_image = self.rows == self.area();
        let follows = self.side == 1 || self.out_map[1] == self.map[1] && (one_image || self.out_map[0] == self.map[0]);
        let fits = [self.a_row, self.more_row, self.w_row].iter().all(|&row| row < LONGEST_ROW);
        self.is_whole()
            && !self.crossed
            && self.stride == 1
            && follows
            && fits
            && self.channels.iter().all(|channels| channels.is_multiple_of(STEP))
            && self.inner == self.side * self.side * (self.channels[0] + self.channels[1])
    }

    /// Whether k is passed through channels first: a place's rows are then read again while they are near.
    pub(super) fn is_by_channels(&self) -> bool {
        self.side > 1 && self.channels.iter().all(|channels| channels.is_multiple_of(STEP))
    }

    /// As the kernels read it, if every number fits, split along k every `depth`.
    pub(super) fn words(&self, depth: usize) -> Option<Vec<u64>> {
        let mut words = vec![
            self.a,
            self.more,
            self.w,
            self.bias,
            self.table,
            self.step,
            self.onto,
            self.out,
            self.partials,
            self.moments,
            self.a_sums,
            self.row_sums,
        ];
        let strides = [self.a_batch, self.w_batch, self.out_batch].map(|stride| i64::try_from(stride).ok());
        for stride in strides {
            words.push(stride? as u64);
        }
        let ending = match self.ending {
            Ending::AsItIs => 0,
            Ending::Gated => 1,
            Ending::Softmax { .. } => 2,
        };
        // A softmax has no moments, and its number is in their place.
        let measured = match self.ending {
            Ending::Softmax { counted } => [counted, 0],
            _ => self.measured,
        };
        let places = self.side * self.side;
        let first_tap = if self.side == 2 { 1 << 4 } else { 1 };
        let last_tap = first_tap << (places - 1);
        let before = [
            self.rows,
            self.columns,
            self.inner,
            self.a_row,
            self.more_row,
            self.w_row,
            self.out_row,
            self.channels[0],
            self.channels[1],
            self.map[0],
            self.map[1],
            self.out_map[0],
            self.out_map[1],
            self.side,
            self.stride,
            self.padding[0],
            self.padding[1],
            usize::from(self.phased),
            first_tap,
            last_tap,
            (self.side - 1) * (self.map[1] + 1),
            (places - 1) * (self.channels[0] + self.channels[1]),
            self.steps,
            ending,
            depth,
            measured[0],
            measured[1],
        ];
        let flags = [self.wide, self.crossed, self.is_whole(), self.is_by_channels()].map(usize::from);
        let ints =
            |numbers: &[usize]| numbers.iter().map(|&number| i32::try_from(number).ok()).collect::<Option<Vec<_>>>();
        let mut halves: Vec<u32> = ints(&before)?.into_iter().map(|number| number as u32).collect();
        halves.push(self.alpha.to_bits());
        let behind = [&[self.scaled], &flags[..], &[self.row_parts, self.sum_rows]].concat();
        halves.extend(ints(&behind)?.into_iter().map(|number| number as u32));
        halves.push(self.eps.to_bits());
        halves.extend(ints(&[self.problems * self.rows, 0])?.into_iter().map(|number| number as u32));
        words.extend(halves.as_chunks().0.iter().map(|&[low, high]: &[u32; 2]| u64::from(low) | u64::from(high) << 32));
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product() -> Problem {
        Problem::of_matmul(&MatmulShape::linear(Dtype::F16, 3, 16, 24), &Operands::product(4096, 8192, 12_288))
    }

    #[test]
    fn a_kernel_reads_the_fields_in_its_order() {
        let normed = Problem { a_sums: 1 << 20, row_sums: 2 << 20, row_parts: 5, sum_rows: 3, eps: 0.25, ..product() };
        let words = Problem { alpha: 0.5, scaled: 8, wide: true, ..normed }.words(64).unwrap();
        assert_eq!(words.len(), 12 + 3 + 38 / 2);
        assert_eq!((words[0], words[2], words[7]), (4096, 8192, 12_288));
        // Rows and columns, inner and the pitch of A.
        assert_eq!(&words[10..12], &[1 << 20, 2 << 20]);
        assert_eq!(&words[15..17], &[3 | 16 << 32, 24 | 24 << 32]);
        // A window of one place: it is the first and the last.
        assert_eq!(&words[24..26], &[1 | 1 << 32, 0]);
        // `chunks` is before alpha, then come `scaled`, `wide`, `crossed`, `whole`, the order along k, `row_parts`, `sum_rows`,
        // `eps`, the rows of all problems and nothing.
        assert_eq!(words[28] >> 32, u64::from(0.5f32.to_bits()));
        assert_eq!(&words[29..], &[8 | 1 << 32, 1 << 32, 5 << 32, 3 | u64::from(0.25f32.to_bits()) << 32, 3]);
        assert_eq!(Problem { a_row: 1 << 31, ..product() }.words(64), None);
    }

    #[test]
    fn a_problem_is_steady_if_every_step_is_alike() {
        let plain = |inner| {
            Problem::of_matmul(&MatmulShape::linear(Dtype::F16, 64, 64, inner), &Operands::product(4096, 8192, 12_288))
        };
        assert!(plain(128).is_steady());
        assert!(!plain(96).is_steady());
        assert!(!Problem { crossed: true, ..plain(128) }.is_steady());
        assert!(!Problem { w_row: 1 << 24, ..plain(128) }.is_steady());
        let conv = |channels, side, stride, open| {
            let (dtype, batch, height, width, padding) = (Dtype::F16, 2, 16, 16, side / 2);
            let (channels_in, channels_out) = (channels, 64);
            let shape = ConvShape {
                dtype,
                batch,
                height,
                width,
                channels_in,
                channels_out,
                side,
                stride,
                padding,
                past: 0,
                open,
            };
            Problem::of_conv(&shape, 4096, 8192, 12_288)
        };
        assert!(conv(64, 3, 1, false).is_steady() && conv(64, 1, 1, false).is_steady());
        assert!(!conv(32, 3, 1, false).is_steady());
        assert!(!conv(64, 3, 2, false).is_steady() && !conv(64, 1, 2, false).is_steady());
        // Between images are rows that are no places of the output.
        assert!(!conv(64, 3, 1, true).is_steady());
        // Of one image, what lies above and below is no row of another.
        let one = conv(64, 3, 1, true);
        assert!(Problem { rows: one.area(), ..one }.is_steady());
        let two = Problem { channels: [64, 64], inner: 9 * 128, ..conv(64, 3, 1, false) };
        assert!(two.is_steady());
        assert!(!Problem { channels: [96, 32], ..two }.is_steady());
    }

    #[test]
    fn groups_are_measured_in_the_fewest_equal_parts_that_fill_a_tile() {
        let of = |channels: usize, groups: usize, columns: usize, step: usize| {
            let problem = Problem::of_matmul(
                &MatmulShape::linear(Dtype::F16, 64, channels, 64),
                &Operands::product(4096, 8192, 12_288),
            );
            problem.parts_of_groups(groups, columns, step)
        };
        for (channels, columns, parts) in [(320, 160, 1), (320, 128, 5), (640, 128, 5), (1280, 128, 5), (512, 128, 1)] {
            assert_eq!(of(channels, 32, columns, 2), Some(parts), "{channels} {columns}");
        }
        // Groups of three channels, one and a half, and none.
        assert_eq!((of(96, 32, 128, 2), of(96, 32, 128, 1)), (None, Some(3)));
        assert_eq!((of(48, 32, 128, 1), of(48, 0, 128, 1)), (None, None));
    }

    #[test]
    fn phases_read_one_map_and_have_their_weights_side_by_side() {
        let shape = PhasesShape {
            dtype: Dtype::F16,
            batch: 2,
            height: 10,
            width: 24,
            made: (0, 10),
            channels_in: 64,
            channels_out: 128,
        };
        let problem = Problem::of_phases(&shape, 4096, 8192, 12_288);
        assert_eq!((problem.rows, problem.columns, problem.inner, problem.problems), (2 * 240, 128, 4 * 64, 4));
        assert_eq!((problem.a_batch, problem.w_batch, problem.w_row, problem.out_batch), (0, 256, 1024, 0));
        assert_eq!((problem.padding, problem.phases(), problem.is_steady()), ([1, 1], 4, true));
        // Eight rows of one image, with those around them.
        let band = Problem::of_phases(&PhasesShape { batch: 1, made: (1, 8), ..shape }, 4096, 8192, 12_288);
        assert_eq!((band.padding, band.map, band.out_map), ([0, 1], [10, 24], [8, 24]));
        assert!(band.is_steady() && !Problem { rows: 2 * band.rows, ..band }.is_steady());
    }

    #[test]
    fn a_problem_is_whole_if_all_its_vectors_are() {
        assert!(product().is_whole());
        for odd in [
            Problem { a: 4098, ..product() },
            Problem { onto: 8, ..product() },
            Problem { inner: 77, ..product() },
            Problem { w_row: 20, ..product() },
            Problem { problems: 2, a_batch: 5, ..product() },
        ] {
            assert!(!odd.is_whole(), "{odd:?}");
        }
        // It is not read.
        assert!(Problem { a_batch: 5, ..product() }.is_whole());
    }
}
