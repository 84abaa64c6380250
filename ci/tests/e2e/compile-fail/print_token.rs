//! A token cannot be printed.

use ci::trust::authority::Credential;

fn format_token(credential: &Credential) -> String {
    format!("{}", credential.token)
}

fn convert_token(credential: &Credential) -> String {
    credential.token.to_string()
}

fn main() {}
