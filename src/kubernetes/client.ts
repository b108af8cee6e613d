import {request as httpsRequest} from 'node:https';
import type {KubernetesConfig} from '../config/types.ts';
import {type Access, loadAccess} from './access.ts';
import {type Answer, explainAnswer, explainFailure} from './refusals.ts';

/** The Kubernetes object, as far as we look at one. */
export interface ApiObject {
	readonly metadata: {
		readonly name: string;
		readonly namespace: string;
		readonly uid: string;
		readonly resourceVersion: string;
		readonly labels?: Readonly<Record<string, string>>;
		readonly annotations?: Readonly<Record<string, string>>;
		readonly [field: string]: unknown;
	};
	readonly spec?: Readonly<Record<string, unknown>>;
	readonly status?: {
		readonly conditions?: readonly Readonly<Record<string, unknown>>[];
		readonly [field: string]: unknown;
	};
	readonly [field: string]: unknown;
}

export interface ApiRequest {
	readonly verb: 'get' | 'create' | 'update' | 'patch' | 'delete';
	readonly resource: 'workloadentries' | 'workloadgroups';
	readonly subresource?: 'status';
	readonly namespace: string;
	readonly name: string;
	/** An object, a merge patch (RFC 7386; custom resources take no strategic ones), or DeleteOptions. */
	readonly body?: unknown;
}

export interface KubernetesClient {
	/**
	 * One request on a connection of its own; they are few.
	 * @throws AgentError `kubernetes.*`; the signal's reason
	 */
	send(request: ApiRequest, signal: AbortSignal): Promise<ApiObject>;
}

const methods = {get: 'GET', create: 'POST', update: 'PUT', patch: 'PATCH', delete: 'DELETE'} as const;

/** Look-up, handshake and answer together. */
const timeoutMs = 10_000;
/** etcd holds objects of 1.5 MiB at most. */
const maxAnswerBytes = 2 * 1024 * 1024;

export const createKubernetesClient = (config: KubernetesConfig, userAgent: string): KubernetesClient => ({
	send: async (request, signal) => {
		const access = await loadAccess(config);
		const limit = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]);
		let answer: RawAnswer;
		try {
			answer = await exchange(access, request, userAgent, limit);
		} catch (error) {
			signal.throwIfAborted();
			throw explainFailure(
				limit.aborted ? new Error(`no answer within ${timeoutMs / 1000} s`) : error,
				request,
				access,
			);
		}
		if (answer.status >= 200 && answer.status < 300) {
			const object = parseObject(answer.body);
			if (object) return object;
		}
		throw explainAnswer(readAnswer(answer), request, access);
	},
});

interface RawAnswer {
	readonly status: number;
	readonly body: string;
}

function exchange(access: Access, request: ApiRequest, userAgent: string, signal: AbortSignal): Promise<RawAnswer> {
	const {server, rootsPem, serverName, token, certificate} = access;
	const {verb, resource, subresource, namespace, name, body} = request;
	const parts = ['apis/networking.istio.io/v1/namespaces', namespace, resource];
	if (verb !== 'create') parts.push(name);
	if (subresource) parts.push(subresource);
	const payload = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
	return new Promise((resolve, reject) => {
		const outgoing = httpsRequest({
			host: server.hostname.replace(/^\[|\]$/g, ''),
			port: server.port || 443,
			path: `${server.pathname.replace(/\/$/, '')}/${parts.join('/')}`,
			method: methods[verb],
			agent: false,
			ca: rootsPem,
			rejectUnauthorized: true,
			...(serverName && {servername: serverName}),
			...(certificate && {cert: certificate.certPem, key: certificate.keyPem.reveal()}),
			signal,
			headers: {
				accept: 'application/json',
				'user-agent': userAgent,
				...(token && {authorization: `Bearer ${token.reveal()}`}),
				...(payload && {
					'content-type': verb === 'patch' ? 'application/merge-patch+json' : 'application/json',
					'content-length': payload.length,
				}),
			},
		});
		outgoing.on('error', reject);
		outgoing.on('response', incoming => {
			const chunks: Buffer[] = [];
			let size = 0;
			incoming.on('data', (chunk: Buffer) => {
				size += chunk.length;
				if (size > maxAnswerBytes) incoming.destroy(new Error(`the answer is larger than ${maxAnswerBytes} bytes`));
				else chunks.push(chunk);
			});
			incoming.on('error', reject);
			incoming.on('end', () =>
				resolve({status: incoming.statusCode ?? 0, body: Buffer.concat(chunks).toString('utf8')}),
			);
		});
		outgoing.end(payload);
	});
}

function parseJson(text: string): Readonly<Record<string, unknown>> | undefined {
	try {
		const value: unknown = JSON.parse(text);
		return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined;
	} catch {
		// A page of something in between; its status is told.
		return undefined;
	}
}

/** A deletion is answered with a Status, which has no name. */
function parseObject(text: string): ApiObject | undefined {
	const value = parseJson(text);
	return value && ('metadata' in value || value['kind'] === 'Status') ? (value as unknown as ApiObject) : undefined;
}

function readAnswer({status, body}: RawAnswer): Answer {
	const value = parseJson(body);
	const isStatus = value?.['kind'] === 'Status';
	const text = isStatus ? String(value['message'] ?? '') : body;
	const message = text.replace(/[\x00-\x1f\x7f-\x9f]+/g, ' ').trim();
	return {status, reason: isStatus ? String(value['reason'] ?? '') : '', message, isStatus};
}
