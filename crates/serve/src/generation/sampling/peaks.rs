//! The greatest logit of each block of a row: one pass that also finds what is no logit, and after which most of the
//! row need not be looked at again.

/// Logits in a block. A 128k vocabulary has 1,000 blocks: many more than `top_k` usually asks for, and few to search.
pub(super) const BLOCK: usize = 128;

/// Independent running values, so that the compiler computes them side by side.
const LANES: usize = 16;

/// A row of logits from which no token can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotANumber {
    /// The model computed no number.
    #[error("the model's logit of token {token} is not a number")]
    Nan {
        /// The first such token.
        token: u32,
    },
    /// The model computed a number too great.
    #[error("the model's logit of token {token} is infinite")]
    Infinite {
        /// The first such token.
        token: u32,
    },
    /// Every logit is minus infinity, in the model's row or once `min_tokens` held the end tokens back.
    #[error("no token can be drawn: every logit is minus infinity")]
    Nothing,
}

/// The greatest logit of each block of a row.
#[derive(Debug, Default)]
pub(super) struct Peaks {
    blocks: Vec<f32>,
    greatest: f32,
    /// A copy of `blocks` that is put out of order.
    shuffled: Vec<f32>,
}

impl Peaks {
    /// Reads the row.
    ///
    /// # Errors
    /// A logit that is NaN or plus infinity.
    pub(super) fn scan(&mut self, logits: &[f32]) -> Result<(), NotANumber> {
        let mut fine = [u32::MAX; LANES];
        self.blocks.clear();
        self.blocks.extend(logits.chunks(BLOCK).map(|block| peak(block, &mut fine)));
        self.find_greatest();
        if fine.iter().all(|&lane| lane == u32::MAX) { Ok(()) } else { Err(wrong(logits)) }
    }

    /// Takes changed logits of the row into account.
    pub(super) fn update(&mut self, logits: &[f32], changed: impl ExactSizeIterator<Item = u32>) {
        let mut fine = [u32::MAX; LANES];
        if changed.len() >= self.blocks.len() {
            self.blocks.clear();
            self.blocks.extend(logits.chunks(BLOCK).map(|block| peak(block, &mut fine)));
        } else {
            for token in changed {
                let start = token as usize / BLOCK * BLOCK;
                let block = &logits[start..logits.len().min(start + BLOCK)];
                self.blocks[start / BLOCK] = peak(block, &mut fine);
            }
        }
        self.find_greatest();
    }

    fn find_greatest(&mut self) {
        self.greatest = peak(&self.blocks, &mut [0; LANES]);
    }

    /// The greatest logit of the row.
    pub(super) fn greatest(&self) -> f32 {
        self.greatest
    }

    /// The greatest logit of each block.
    pub(super) fn blocks(&self) -> &[f32] {
        &self.blocks
    }

    /// The first token that has the greatest logit.
    pub(super) fn likeliest(&self, logits: &[f32]) -> u32 {
        let start = self.blocks.iter().position(|&peak| peak == self.greatest).unwrap_or(0) * BLOCK;
        let within = logits[start..].iter().position(|&logit| logit == self.greatest).unwrap_or(0);
        (start + within) as u32
    }

    /// A logit that at least `count` tokens reach: as many blocks have one that does.
    pub(super) fn reached_by(&mut self, count: usize) -> f32 {
        if count == 0 || count > self.blocks.len() {
            return f32::NEG_INFINITY;
        }
        self.shuffled.clone_from(&self.blocks);
        *self.shuffled.select_nth_unstable_by(count - 1, |one, other| other.total_cmp(one)).1
    }
}

/// The greatest of `block`; a lane of `fine` loses its bits where a value is NaN or plus infinity.
fn peak(block: &[f32], fine: &mut [u32; LANES]) -> f32 {
    let mut greatest = [f32::NEG_INFINITY; LANES];
    let (parts, rest) = block.as_chunks::<LANES>();
    for part in parts {
        for lane in 0..LANES {
            greatest[lane] = greater(part[lane], greatest[lane]);
            fine[lane] &= u32::from(part[lane] <= f32::MAX).wrapping_neg();
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        greatest[lane] = greater(value, greatest[lane]);
        fine[lane] &= u32::from(value <= f32::MAX).wrapping_neg();
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            greatest[lane] = greater(greatest[lane + width], greatest[lane]);
        }
        width /= 2;
    }
    greatest[0]
}

/// One instruction, unlike `f32::max`, which has more to say of NaN.
fn greater(value: f32, than: f32) -> f32 {
    if value > than { value } else { than }
}

/// What is wrong with a row in which something is.
fn wrong(logits: &[f32]) -> NotANumber {
    let first = logits.iter().zip(0..).find(|(logit, _)| logit.is_nan() || **logit == f32::INFINITY);
    match first {
        Some((logit, token)) if logit.is_nan() => NotANumber::Nan { token },
        Some((_, token)) => NotANumber::Infinite { token },
        None => NotANumber::Nothing,
    }
}
