//! Items of different lengths: which inputs have one, and what becomes of an item that is too long.

use crate::tensor::{HostTensor, TensorSpec};

/// Why an item has no place among others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LengthError {
    /// Padded together, its inputs would no longer belong together.
    #[error("inputs \"{first}\" and \"{other}\" must have one length, but have {length} and {other_length}")]
    Differ {
        /// An input.
        first: String,
        /// Its length.
        length: usize,
        /// Another.
        other: String,
        /// Its length.
        other_length: usize,
    },
    /// It is longer than the model takes.
    #[error("the item has length {length}, more than the {max_length} that the model takes")]
    TooLong {
        /// Its length.
        length: usize,
        /// The most the model takes.
        max_length: usize,
    },
}

/// The inputs of a model that are padded, of which there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths {
    padded: Vec<Padded>,
    /// The longest item that the model takes; `None`: any.
    pub max_length: Option<usize>,
    /// Whether a longer one is cut, where its caller does not say.
    pub truncation: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Padded {
    name: String,
    input: usize,
    axis: usize,
}

impl Lengths {
    /// Of a model with these inputs; `None` where nothing is padded. What [`TensorSpec::padding`] refuses
    /// counts as not padded.
    pub fn of(inputs: &[TensorSpec], max_length: Option<usize>, truncation: bool) -> Option<Self> {
        let padded = |(input, spec): (usize, &TensorSpec)| {
            let axis = spec.padding().ok()??.axis;
            Some(Padded { name: spec.name.clone(), input, axis })
        };
        let padded: Vec<Padded> = inputs.iter().enumerate().filter_map(padded).collect();
        (!padded.is_empty()).then_some(Self { padded, max_length, truncation })
    }

    /// The length of an item with one tensor an input.
    ///
    /// # Errors
    /// When its inputs have several.
    pub fn length(&self, item: &[HostTensor]) -> Result<usize, LengthError> {
        let length = |padded: &Padded| item[padded.input].shape[padded.axis];
        let first = &self.padded[0];
        match self.padded.iter().find(|other| length(other) != length(first)) {
            None => Ok(length(first)),
            Some(other) => Err(LengthError::Differ {
                first: first.name.clone(),
                length: length(first),
                other: other.name.clone(),
                other_length: length(other),
            }),
        }
    }

    /// The item, cut to the longest that the model takes if it is longer and `truncation` says so.
    ///
    /// # Errors
    /// When its inputs have several lengths, or it is too long and not cut.
    pub fn fit(&self, mut item: Vec<HostTensor>, truncation: bool) -> Result<Vec<HostTensor>, LengthError> {
        let length = self.length(&item)?;
        let Some(max_length) = self.max_length.filter(|max_length| length > *max_length) else {
            return Ok(item);
        };
        if !truncation {
            return Err(LengthError::TooLong { length, max_length });
        }
        for padded in &self.padded {
            let tensor = &mut item[padded.input];
            *tensor = tensor.clone().cut(padded.axis, max_length);
        }
        Ok(item)
    }

    /// Whether items may differ in dimension `axis` of `input`.
    pub fn varies(&self, input: usize, axis: usize) -> bool {
        self.padded.iter().any(|padded| (padded.input, padded.axis) == (input, axis))
    }

    /// What a batch is padded to where `length` is asked for and `longest` is needed: a bucket may reach
    /// beyond what the model takes.
    pub fn padded_length(&self, length: usize, longest: usize) -> usize {
        length.min(self.max_length.unwrap_or(usize::MAX)).max(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn spec(name: &str, shape: &[i64], pad: Option<f64>) -> TensorSpec {
        TensorSpec { name: name.to_owned(), dtype: DType::Bool, shape: shape.to_vec(), pad }
    }

    fn zeros(shape: &[usize]) -> HostTensor {
        let data = vec![0; shape.iter().product()].into();
        HostTensor { dtype: DType::Bool, shape: shape.to_vec(), data }
    }

    fn lengths(max_length: Option<usize>) -> Lengths {
        let inputs =
            [spec("ids", &[-1], Some(0.0)), spec("k", &[-1], None), spec("mask", &[2, -1], Some(1.0))];
        Lengths::of(&inputs, max_length, false).unwrap()
    }

    #[test]
    fn inputs_with_a_pad_have_a_length_and_only_they() {
        assert_eq!(Lengths::of(&[spec("x", &[-1], None)], Some(4), true), None);
        let lengths = lengths(None);
        assert_eq!(lengths.length(&[zeros(&[3]), zeros(&[7]), zeros(&[2, 3])]), Ok(3));
        assert!(lengths.varies(0, 0) && lengths.varies(2, 1));
        assert!(!lengths.varies(1, 0) && !lengths.varies(2, 0));
    }

    #[test]
    fn inputs_of_two_lengths_are_refused_by_name() {
        let error = lengths(None).fit(vec![zeros(&[3]), zeros(&[7]), zeros(&[2, 4])], true).unwrap_err();
        assert_eq!(error.to_string(), "inputs \"ids\" and \"mask\" must have one length, but have 3 and 4");
    }

    #[test]
    fn an_item_that_is_too_long_is_refused_with_both_lengths_or_cut_along_what_is_padded() {
        let item = || vec![zeros(&[5]), zeros(&[7]), zeros(&[2, 5])];
        let error = lengths(Some(4)).fit(item(), false).unwrap_err();
        assert_eq!(error.to_string(), "the item has length 5, more than the 4 that the model takes");
        let shapes = |max| lengths(Some(max)).fit(item(), true).unwrap().into_iter().map(|x| x.shape);
        assert!(shapes(4).eq([vec![4], vec![7], vec![2, 4]]));
        assert!(shapes(5).eq([vec![5], vec![7], vec![2, 5]]));
    }

    #[test]
    fn padding_never_goes_beyond_what_the_model_takes_nor_below_the_longest() {
        assert_eq!(lengths(Some(100)).padded_length(128, 70), 100);
        assert_eq!(lengths(None).padded_length(128, 70), 128);
        assert_eq!(lengths(Some(100)).padded_length(64, 70), 70);
    }
}
