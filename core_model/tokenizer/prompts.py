"""The system prompts that choose between thinking and answering at once."""

# V3's text was never published; what it asks for is (V3 report §5.1): reflection and verification.
REFLECT_SYSTEM_PROMPT = "Think step by step, check your work, then answer."
