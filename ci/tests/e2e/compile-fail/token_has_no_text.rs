//! A token cannot be printed by accident.

use ci::trust::authority::Credential;

fn printed(credential: &Credential) -> String {
    format!("{}", credential.token)
}

fn put_together(credential: &Credential) -> String {
    credential.token.to_string()
}

fn main() {}
