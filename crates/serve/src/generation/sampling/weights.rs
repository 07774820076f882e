//! The weights of tokens: their probabilities, not yet divided by the total.

use super::peaks::BLOCK;

/// Independent running sums, so that the compiler computes them side by side.
const LANES: usize = 8;

/// The least exponent (of 2) whose power is surely a normal `f32`. What lies below weighs nothing: beside the likeliest token's
/// weight, which is 1, a draw of 53 random bits could not meet it.
const LEAST_EXPONENT: f32 = -125.0;

/// Turns logits into weights: `exp((logit - greatest) / temperature)`, so that the likeliest token weighs 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    greatest: f32,
    /// Of the temperature times `ln 2`.
    inverse: f32,
}

impl Scale {
    /// For a row whose greatest logit is finite, and a temperature above 0.
    pub(super) fn new(greatest: f32, temperature: f32) -> Self {
        // The inverse of the least temperatures is infinite, and zero times infinity is no number.
        Self { greatest, inverse: (std::f32::consts::LOG2_E / temperature).min(f32::MAX) }
    }

    /// The weight's logarithm to base 2.
    pub(super) fn exponent(self, logit: f32) -> f32 {
        (logit - self.greatest) * self.inverse
    }

    /// Between 0 and 1, with a relative error below 1e-6 beside the exponent's own rounding.
    pub(super) fn weight(self, logit: f32) -> f32 {
        power_of_two(self.exponent(logit))
    }
}

/// `2^x` for `x <= 0`, without branches or calls, so that a loop over it runs several at once: the Taylor series of
/// `2^r` to the sixth power, where `r` is what rounding takes from `x` (at most a half, so the remainder is at most
/// 1.2e-7), and the rounded integer added to the exponent.
#[inline(always)]
fn power_of_two(x: f32) -> f32 {
    /// Adding 1.5 * 2^23 leaves no bits after the point: it rounds, and the low bits hold the integer.
    const ROUNDS: f32 = 12_582_912.0;
    /// The series' coefficients, `(ln 2)^k / k!`.
    const SERIES: [f32; 7] = {
        let mut series = [1.0; 7];
        let mut term = 1.0;
        let mut k = 1;
        while k < series.len() {
            term *= std::f64::consts::LN_2 / k as f64;
            series[k] = term as f32;
            k += 1;
        }
        series
    };
    let bounded = if x > LEAST_EXPONENT { x } else { LEAST_EXPONENT };
    let shifted = bounded + ROUNDS;
    let r = bounded - (shifted - ROUNDS);
    let [c0, c1, c2, c3, c4, c5, c6] = SERIES;
    let series = c0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * c6)))));
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < LEAST_EXPONENT { 0.0 } else { series * power }
}

/// The weights of a row.
#[derive(Debug, Default)]
pub(super) struct Weights {
    each: Vec<f32>,
    /// The sum of each block.
    sums: Vec<f64>,
}

impl Weights {
    /// Computes the weights of `logits`.
    pub(super) fn fill(&mut self, logits: &[f32], scale: Scale) {
        self.each.resize(logits.len(), 0.0);
        self.sums.clear();
        let blocks = logits.chunks(BLOCK).zip(self.each.chunks_mut(BLOCK));
        self.sums.extend(blocks.map(|(logits, weights)| fill(logits, weights, scale)));
    }

    /// The weight of each token.
    pub(super) fn each(&self) -> &[f32] {
        &self.each
    }

    /// The sum of the weights of each block of tokens.
    pub(super) fn sums(&self) -> &[f64] {
        &self.sums
    }

    pub(super) fn total(&self) -> f64 {
        self.sums.iter().sum()
    }

    /// The first token at which the running sum exceeds `share` of the total; `share` in [0, 1).
    pub(super) fn pick(&self, share: f64) -> usize {
        let mut left = share * self.total();
        let mut block = 0;
        for (index, &sum) in self.sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
            // Rounding may leave a last bit over: the last block with a weight stands for it.
            block = index;
            if left < sum {
                break;
            }
            left -= sum;
        }
        let start = block * BLOCK;
        let weights = &self.each[start..self.each.len().min(start + BLOCK)];
        start + pick(weights.iter().copied(), left)
    }
}

/// The first place at which the running sum of `weights` exceeds `left`, or the last that weighs anything.
pub(super) fn pick(weights: impl Iterator<Item = f32>, mut left: f64) -> usize {
    let mut place = 0;
    for (index, weight) in weights.enumerate() {
        place = if weight > 0.0 { index } else { place };
        left -= f64::from(weight);
        // What is left is exactly zero where nothing weighed anything yet, too.
        if left < 0.0 {
            break;
        }
    }
    place
}

/// Computes the weights of a block and answers their sum.
fn fill(logits: &[f32], weights: &mut [f32], scale: Scale) -> f64 {
    for (weight, &logit) in weights.iter_mut().zip(logits) {
        *weight = scale.weight(logit);
    }
    let mut sums = [0.0; LANES];
    let (parts, rest) = weights.as_chunks::<LANES>();
    for part in parts {
        for lane in 0..LANES {
            sums[lane] += f64::from(part[lane]);
        }
    }
    for (sum, &weight) in sums.iter_mut().zip(rest) {
        *sum += f64::from(weight);
    }
    sums.iter().sum()
}
