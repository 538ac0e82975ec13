"""/v1 in OpenAI's style, mounted beside the page."""

from .api import openai_api as openai_api
