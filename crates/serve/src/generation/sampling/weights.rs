//! The weights of tokens: their probabilities, not yet divided by the total.

use super::peaks::BLOCK;

/// Independent running sums, so that the compiler computes them side by side.
const LANES: usize = 8;

/// The least exponent whose power is a normal `f32`. What lies below weighs nothing: beside the likeliest token's
/// weight, which is 1, a draw of 53 random bits could not meet it.
const LEAST_EXPONENT: f32 = -87.0;

/// Turns logits into weights: `exp((logit - greatest) / temperature)`, so that the likeliest token weighs 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    greatest: f32,
    inverse: f32,
}

impl Scale {
    /// For a row whose greatest logit is finite, and a temperature above 0.
    pub(super) fn new(greatest: f32, temperature: f32) -> Self {
        // The inverse of the least temperatures is infinite, and zero times infinity is no number.
        Self { greatest, inverse: temperature.recip().min(f32::MAX) }
    }

    /// The weight's natural logarithm.
    pub(super) fn exponent(self, logit: f32) -> f32 {
        (logit - self.greatest) * self.inverse
    }

    /// Between 0 and 1, with a relative error below 1e-6 beside the exponent's own rounding.
    pub(super) fn weight(self, logit: f32) -> f32 {
        exponential(self.exponent(logit))
    }
}

/// `e^x` for `x <= 0`, without branches or calls, so that a loop over it runs several at once: `x = n ln 2 + r`, the
/// Taylor series of `e^r` to the sixth power (`|r| <= ln 2 / 2`, remainder 1.2e-7), and `n` added to the exponent.
#[inline(always)]
fn exponential(x: f32) -> f32 {
    /// Adding 1.5 * 2^23 leaves no bits after the point: it rounds, and the low bits hold the integer.
    const ROUNDS: f32 = 12_582_912.0;
    /// `ln 2` in two parts, the first with bits to spare for a product with an integer.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = (std::f64::consts::LN_2 - LN_2_HIGH as f64) as f32;
    let bounded = if x > LEAST_EXPONENT { x } else { LEAST_EXPONENT };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUNDS;
    let n = shifted - ROUNDS;
    let r = (bounded - n * LN_2_HIGH) - n * LN_2_LOW;
    let series = 1.0 / 120.0 + r * (1.0 / 720.0);
    let series = 1.0 / 24.0 + r * series;
    let series = 1.0 / 6.0 + r * series;
    let series = 0.5 + r * series;
    let series = 1.0 + r * series;
    let series = 1.0 + r * series;
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
    for (index, weight) in weights.enumerate().filter(|(_, weight)| *weight > 0.0) {
        place = index;
        if left < f64::from(weight) {
            break;
        }
        left -= f64::from(weight);
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
