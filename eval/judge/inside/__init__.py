"""Files that run inside the sandbox, each started or imported there by name; nothing outside imports them."""
