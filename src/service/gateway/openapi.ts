import { INTERFACE_VERSION } from '../interface/protocol.js'
import { ROUTES, type Route } from './routes.js'
import { ref, SCHEMAS } from './schemas.js'

const ERRORS: Readonly<Record<string, string>> = {
  400: 'An argument is wrong.',
  401: 'No bearer, or one that is not taken.',
  404: 'There is none, or none that you may see.',
  429: 'A limit is reached.',
  502: 'The service domain answers what it should not.',
  503: 'The service domain is away, or the gateway is busy.',
  504: 'The service domain did not answer in time.',
}

/** The description of the HTTP view, made from its routes (OpenAPI 3.1). */
export function openApi(): object {
  const paths: Record<string, Record<string, object>> = {}
  for (const route of ROUTES) {
    paths[route.path] = { ...paths[route.path], [route.method.toLowerCase()]: operation(route) }
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'Findings of a service domain',
      version: `${INTERFACE_VERSION}.0.0`,
      description: 'The standard interface as plain HTTP and JSON. What is not yours to see is not there.',
    },
    security: [{ bearer: [] }],
    paths,
    components: {
      securitySchemes: {
        bearer: { type: 'http', scheme: 'bearer', description: "A customer's pass, or the gateway's local secret." },
      },
      schemas: SCHEMAS,
      responses: Object.fromEntries(
        Object.entries(ERRORS).map(([status, description]) => [
          `Error${status}`,
          { description, content: { 'application/json': { schema: ref('Error') } } },
        ]),
      ),
    },
  }
}

function operation({ id, summary, parameters, body, answers, stream }: Route): object {
  const errors = Object.keys(ERRORS).map((status) => [status, { $ref: `#/components/responses/Error${status}` }])
  return {
    operationId: id,
    summary,
    ...(Object.keys(parameters).length > 0 && {
      parameters: Object.entries(parameters).map(([name, parameter]) => ({
        name,
        ...parameter,
        required: parameter.in === 'path',
      })),
    }),
    ...(body && { requestBody: { content: { 'application/json': { schema: body } } } }),
    responses: {
      200: {
        description: stream && answers.type !== 'application/octet-stream' ? 'A line of JSON for each.' : 'The answer.',
        content: { [answers.type]: { schema: answers.schema } },
      },
      ...Object.fromEntries(errors),
    },
  }
}
