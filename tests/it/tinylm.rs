//! The built-in language model: what the server makes it say is of the grammar that it was trained on.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::{root, start};

const ROUTE: &str = "/v1/completions";
const TEXTS: usize = 200;
const LONGEST: usize = 300;

/// Those sentences of stories that are not of the grammar, each in a line.
fn ungrammatical(stories: &[String]) -> Vec<String> {
    let mut check = Command::new("python3")
        .arg(root().join("examples/tinylm_grammar.py"))
        .arg("check")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python runs");
    let mut input = check.stdin.take().expect("it is piped");
    let lines = stories.join("\n") + "\n";
    // Its answers are few, so they fit the pipe until all is written.
    input.write_all(lines.as_bytes()).expect("the grammar reads");
    drop(input);
    let output = check.wait_with_output().expect("the grammar answers");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn ninety_nine_of_a_hundred_sentences_are_grammatical() {
    let running = start("[models.tinylm]\n");
    let (mut wrong, mut all) = (Vec::new(), 0);
    for (beginning, seed) in [("", 1), ("", 2), ("The old sailor", 3), ("The old sailor", 4)] {
        let n = TEXTS / 4;
        let body =
            json!({ "prompt": beginning, "n": n, "max_tokens": LONGEST, "temperature": 1.0, "seed": seed });
        let reply = running.post(ROUTE, &body).ok();
        let choices = reply["choices"].as_array().expect("a list");
        assert_eq!(choices.len(), n);
        assert!(choices.iter().all(|choice| choice["finish_reason"] == "stop"), "{reply}");
        let stories: Vec<_> = choices
            .iter()
            .map(|choice| format!("{beginning}{}", choice["text"].as_str().expect("a text")))
            .collect();
        let sentences: usize = stories.iter().map(|story| story.matches('.').count()).sum();
        assert!(2 * sentences > 3 * n, "{sentences} sentences in {n} stories");
        all += sentences;
        wrong.extend(ungrammatical(&stories));
    }
    assert!(wrong.len() * 100 <= all, "{} of {all}: {wrong:#?}", wrong.len());
}
