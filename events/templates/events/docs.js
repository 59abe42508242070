"use strict";

// No interceptors: drf-spectacular's add a header against forged requests, which nothing here asks for, and which would
// stand in every curl command that people copy.
const ui = SwaggerUIBundle({
    url: "{{ schema_url|escapejs }}",
    dom_id: "#swagger-ui",
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
    ...{{ settings|safe }},
});
