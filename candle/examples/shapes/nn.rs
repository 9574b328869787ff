//! What the network is made of, on the CPU, channels last, with gradients: a convolution as one matrix product for the
//! whole batch, group norm with ReLU, upsampling. candle's own convolution takes five times as long backward as forward.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use gemm::Parallelism;

/// A matrix in a slice: element (i, j) is at i·rows + j·columns.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    data: &'a [f32],
    size: [usize; 2],
    step: [usize; 2],
}

impl<'a> Matrix<'a> {
    fn new(data: &'a [f32], size: [usize; 2]) -> Self {
        assert_eq!(data.len(), size[0] * size[1]);
        Matrix { data, size, step: [size[1], 1] }
    }

    fn transposed(self) -> Self {
        let ([m, n], [rows, columns]) = (self.size, self.step);
        Matrix { size: [n, m], step: [columns, rows], ..self }
    }
}

/// The product of two matrices, added to what is there or in place of it. One thread, always in the same order.
fn multiply(a: Matrix, b: Matrix, to: &mut [f32], add: bool) {
    let ([m, k], [inner, n]) = (a.size, b.size);
    assert!(k == inner && to.len() == m * n, "{:?} by {:?} into {}", a.size, b.size, to.len());
    let beta = f32::from(u8::from(add)); // of what is there: gemm's α
    // SAFETY: both matrices are whole slices, and the result is m × n numbers, row after row.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a.step[1] as isize,
            a.step[0] as isize,
            b.data.as_ptr(),
            b.step[1] as isize,
            b.step[0] as isize,
            beta,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// The numbers of a tensor that lie one after the other.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice()?[from..to]),
        None => bail!("a tensor {:?} that is not contiguous", layout.shape()),
    }
}

/// The same, copied if need be.
fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

/// A square convolution with half its size as padding.
#[derive(Clone, Copy)]
struct Window {
    size: usize,
    stride: usize,
    /// Batch, height, width, channels.
    from: [usize; 4],
}

impl Window {
    /// Height and width of the result.
    fn to(&self) -> [usize; 2] {
        [1, 2].map(|i| (self.from[i] - 1) / self.stride + 1)
    }

    fn rows(&self) -> usize {
        let [height, width] = self.to();
        self.from[0] * height * width
    }

    /// Numbers of a patch.
    fn columns(&self) -> usize {
        self.size * self.size * self.from[3]
    }

    /// Calls with the places of all runs of numbers that an image and its patches share: of a row of a patch those
    /// that are not padding.
    fn runs(&self, mut run: impl FnMut(std::ops::Range<usize>, usize)) {
        let ([batch, height, width, channels], half) = (self.from, self.size / 2);
        let [rows, columns] = self.to();
        let mut patch = 0;
        for image in 0..batch {
            for place in 0..rows * columns {
                let [y, x] = [place / columns, place % columns].map(|at| at * self.stride);
                let (first, end) = (x.saturating_sub(half), (x + half + 1).min(width));
                for dy in (0..self.size).filter(|dy| (half..height + half).contains(&(y + dy))) {
                    let row = (image * height + y + dy - half) * width;
                    let to = patch + (dy * self.size + first + half - x) * channels;
                    run((row + first) * channels..(row + end) * channels, to);
                }
                patch += self.columns();
            }
        }
    }

    /// `[rows, columns]`.
    fn patches(&self, image: &[f32]) -> Vec<f32> {
        let mut patches = vec![0.0; self.rows() * self.columns()];
        self.runs(|from, to| patches[to..][..from.len()].copy_from_slice(&image[from]));
        patches
    }

    fn sum_of_patches(&self, patches: &[f32]) -> Vec<f32> {
        let mut image = vec![0.0; self.from.iter().product()];
        self.runs(|to, from| {
            let from = &patches[from..][..to.len()];
            image[to].iter_mut().zip(from).for_each(|(sum, value)| *sum += value);
        });
        image
    }
}

struct Conv {
    size: usize,
    stride: usize,
    /// Of the forward pass, if they are more than the image itself.
    patches: Mutex<Vec<f32>>,
}

impl Conv {
    fn window(&self, image: &Shape, weight: &Shape) -> Result<(Window, usize)> {
        let (batch, height, width, channels) = image.dims4()?;
        let (columns, out) = weight.dims2()?;
        let window = Window { size: self.size, stride: self.stride, from: [batch, height, width, channels] };
        if columns != window.columns() {
            bail!("weights {weight:?} for patches of {}", window.columns());
        }
        Ok((window, out))
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (window, out) = self.window(lx.shape(), lw.shape())?;
        let (x, w, size) = (slice(x, lx)?, slice(w, lw)?, [window.rows(), window.columns()]);
        let mut y = vec![0.0; window.rows() * out];
        let w = Matrix::new(w, [window.columns(), out]);
        if self.size == 1 && self.stride == 1 {
            multiply(Matrix::new(x, size), w, &mut y, false);
        } else {
            let patches = window.patches(x);
            multiply(Matrix::new(&patches, size), w, &mut y, false);
            *self.patches.lock().expect("no panic in between") = patches;
        }
        let [height, width] = window.to();
        Ok((CpuStorage::F32(y), (window.from[0], height, width, out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (window, out) = self.window(x.shape(), w.shape())?;
        let (dy, weights) = (numbers(dy)?, numbers(w)?);
        let dy = Matrix::new(&dy, [window.rows(), out]);
        let mut patches = self.patches.lock().expect("no panic in between");
        if patches.is_empty() {
            *patches = numbers(x)?;
        }
        let mut dw = vec![0.0; weights.len()];
        let size = [window.rows(), window.columns()];
        multiply(Matrix::new(&patches, size).transposed(), dy, &mut dw, false);
        let dw = Tensor::from_vec(dw, w.shape(), w.device())?;
        if !x.track_op() {
            return Ok((None, Some(dw))); // the image
        }
        // The patches are not needed again, but for a second backward pass.
        let mut of_patches = vec![0.0; patches.len()];
        multiply(dy, Matrix::new(&weights, [window.columns(), out]).transposed(), &mut of_patches, false);
        let direct = self.size == 1 && self.stride == 1;
        let dx = if direct { of_patches } else { window.sum_of_patches(&of_patches) };
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), Some(dw)))
    }
}

/// Images `[B, H, W, Ci]` and weights `[size·size·Ci, Co]` to `[B, H', W', Co]`.
pub fn conv(x: &Tensor, weight: &Tensor, size: usize, stride: usize) -> Result<Tensor> {
    x.apply_op2(weight, Conv { size, stride, patches: Mutex::default() })
}

/// Channels of a group.
pub const GROUP: usize = 8;
const EPSILON: f32 = 1e-5;

/// Group norm, scale and shift of each channel, ReLU.
struct Norm;

/// Sums of a group, in vectors of its channels.
type Sums = [f32; GROUP];

fn total(sums: Sums) -> f32 {
    sums.iter().sum()
}

/// Mean and 1 / deviation.
fn moments<'a>(rows: impl Iterator<Item = &'a Sums> + Clone, count: usize) -> [f32; 2] {
    let mut sums = [0.0; GROUP];
    rows.clone().for_each(|row| (0..GROUP).for_each(|c| sums[c] += row[c]));
    let mean = total(sums) / count as f32;
    let mut squares = [0.0; GROUP];
    rows.for_each(|row| (0..GROUP).for_each(|c| squares[c] += (row[c] - mean).powi(2)));
    [mean, 1.0 / (total(squares) / count as f32 + EPSILON).sqrt()]
}

impl Norm {
    fn check(x: &Shape) -> Result<[usize; 3]> {
        let (batch, height, width, channels) = x.dims4()?;
        match channels % GROUP {
            0 => Ok([batch, height * width, channels / GROUP]),
            _ => bail!("{channels} channels are not groups of {GROUP}"),
        }
    }
}

fn groups(data: &[f32]) -> &[Sums] {
    data.as_chunks().0
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        scale: &CpuStorage,
        ls: &Layout,
        shift: &CpuStorage,
        lt: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let [batch, positions, all] = Norm::check(lx.shape())?;
        let (x, scale, shift) = (groups(slice(x, lx)?), groups(slice(scale, ls)?), groups(slice(shift, lt)?));
        let mut y = vec![0.0; x.len() * GROUP];
        let to = y.as_chunks_mut::<GROUP>().0;
        for (image, group) in (0..batch).flat_map(|image| (0..all).map(move |group| (image, group))) {
            let first = image * positions * all + group;
            let [mean, inverse] = moments(x[first..].iter().step_by(all).take(positions), positions * GROUP);
            let (scale, shift) = (scale[group], shift[group]);
            for at in (0..positions).map(|p| first + p * all) {
                for c in 0..GROUP {
                    to[at][c] = ((x[at][c] - mean) * inverse * scale[c] + shift[c]).max(0.0);
                }
            }
        }
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [batch, positions, all] = Norm::check(x.shape())?;
        let [xs, ys, dys, scales] = [x, y, dy, scale].map(numbers);
        let (xs, ys, dys, scales) = (xs?, ys?, dys?, scales?);
        let [x_, y_, dy_, scale_] = [&xs, &ys, &dys, &scales].map(|data| groups(data));
        let mut dx = vec![0.0; xs.len()];
        let to = dx.as_chunks_mut::<GROUP>().0;
        let (mut dscale, mut dshift) = (vec![[0.0; GROUP]; all], vec![[0.0; GROUP]; all]);
        for (image, group) in (0..batch).flat_map(|image| (0..all).map(move |group| (image, group))) {
            let first = image * positions * all + group;
            let count = positions * GROUP;
            let [mean, inverse] = moments(x_[first..].iter().step_by(all).take(positions), count);
            let (mut plain, mut along) = ([0.0; GROUP], [0.0; GROUP]); // Σ dy, Σ dy·x̂ where y > 0
            for at in (0..positions).map(|p| first + p * all) {
                for c in 0..GROUP {
                    let g = if y_[at][c] > 0.0 { dy_[at][c] } else { 0.0 };
                    plain[c] += g;
                    along[c] += g * (x_[at][c] - mean) * inverse;
                }
            }
            let scale = scale_[group];
            let of_group =
                |sums: Sums| total([0, 1, 2, 3, 4, 5, 6, 7].map(|c| sums[c] * scale[c])) / count as f32;
            let (plain_mean, along_mean) = (of_group(plain), of_group(along));
            for at in (0..positions).map(|p| first + p * all) {
                for c in 0..GROUP {
                    let g = if y_[at][c] > 0.0 { dy_[at][c] * scale[c] } else { 0.0 };
                    to[at][c] = inverse * (g - plain_mean - (x_[at][c] - mean) * inverse * along_mean);
                }
            }
            for c in 0..GROUP {
                dscale[group][c] += along[c];
                dshift[group][c] += plain[c];
            }
        }
        let tensor = |data: Vec<f32>, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        let [dscale, dshift] = [dscale, dshift].map(|sums| sums.into_flattened());
        Ok((Some(tensor(dx, x)?), Some(tensor(dscale, scale)?), Some(tensor(dshift, shift)?)))
    }
}

/// Group norm of `[B, H, W, C]`, [`GROUP`] channels a group, with scale and shift `[C]`; then ReLU.
pub fn norm_relu(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    x.apply_op3(scale, shift, Norm)
}

/// Each pixel becomes four.
struct Upsample;

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, (batch, height, width, channels)) = (slice(x, layout)?, layout.shape().dims4()?);
        let mut y = Vec::with_capacity(4 * x.len());
        for row in x.chunks(width * channels) {
            for pixel in [row, row].into_iter().flat_map(|row| row.chunks(channels)) {
                y.extend_from_slice(pixel);
                y.extend_from_slice(pixel);
            }
        }
        Ok((CpuStorage::F32(y), (batch, 2 * height, 2 * width, channels).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let ((_, _, width, channels), dy) = (x.dims4()?, numbers(dy)?);
        let mut dx = Vec::with_capacity(x.elem_count());
        for rows in dy.chunks(4 * width * channels) {
            let (upper, lower) = rows.split_at(rows.len() / 2);
            for (upper, lower) in upper.chunks(2 * channels).zip(lower.chunks(2 * channels)) {
                dx.extend(
                    (0..channels).map(|c| upper[c] + upper[channels + c] + lower[c] + lower[channels + c]),
                );
            }
        }
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// `[B, H, W, C]` to `[B, 2H, 2W, C]`, by the nearest.
pub fn upsample(x: &Tensor) -> Result<Tensor> {
    x.apply_op1(Upsample)
}
