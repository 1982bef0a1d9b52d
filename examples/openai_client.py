"""Paint and ask through the server, with OpenAI's client. Start `bifrons serve` first.

python examples/openai_client.py [URL]
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=url, api_key="any")

images = client.images.generate(
    model="janus-nano", prompt="a photo of a red elephant", extra_body={"seed": 1}
)
assert images.data
encoded = images.data[0].b64_json
assert encoded
Path("served.png").write_bytes(base64.b64decode(encoded))

reply = client.chat.completions.create(
    model="janus-nano",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
                {"type": "text", "text": "What color is the elephant?"},
            ],
        }
    ],
)
print(reply.choices[0].message.content)
