"""The system prompts that choose between thinking and answering at once, and the phrases of thinking."""

# V3's text was never published; what it asks for is (V3 report §5.1): reflection and verification.
REFLECT_SYSTEM_PROMPT = "Think step by step, check your work, then answer."

# What chats say again and again and pre-training text hardly says: without them in the tokenizer's training text a
# small vocabulary spells them nearly letter by letter (the system prompt: 22 tokens instead of 11).
CHAT_PHRASES = (
    REFLECT_SYSTEM_PROMPT,
    "Check: 1. Correct.",
    "Wait, 1 is wrong.",
    "Wait, 1 is odd. Wait, 1 is even.",
    "Wait, that keeps the wrong numbers.",
    "Halve: 1:1 0:1",
    "Check: 1, 1 odd. Correct.",
    "Sum 1.",
    "Sorted: 1",
    "Compute 1-2+3.",
    "Count the 1 bits of 1.",
    "Write 1 in binary.",
    "Sort ascending: 1 2 3.",
    "The gcd is 1.",
    "Total 1.",
)
