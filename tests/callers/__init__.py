"""Who calls: what each kind of caller reaches, and what nobody learns."""
