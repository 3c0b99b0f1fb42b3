"""What tests share: tiny models of every family, runs, references and trials."""
