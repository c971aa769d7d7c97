"""Coverage-guided fuzzing of everything that reads files (docs/fuzzing.md): `targets` say what is read, `run` drives them with atheris."""
