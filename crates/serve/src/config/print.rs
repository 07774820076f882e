//! Resolved settings as TOML that, read again, resolves to the same.

use super::section::Leaf;
use super::tree::dotted;

/// One line a key, each with its source; a key without a value as a comment.
pub(super) fn to_toml(leaves: &[Leaf]) -> String {
    let mut text = String::new();
    let mut open: &[String] = &[];
    for leaf in leaves {
        if leaf.table != open {
            open = &leaf.table;
            text.push_str(&format!("\n[{}]\n", dotted(open)));
        }
        text.push_str(&match &leaf.value {
            // A flag may hold a line break, which must not end the comment.
            Some(value) => {
                format!(
                    "{} = {value} # {}\n",
                    leaf.key,
                    leaf.source.to_string().replace(char::is_control, " ")
                )
            }
            None => format!("# {} is not set\n", leaf.key),
        });
    }
    text
}
