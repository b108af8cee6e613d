import {AgentError, reasonOf} from '../errors.ts';
import type {Readiness} from '../lifecycle/index.ts';
import {textContentType} from './accept.ts';
import type {MetricsPage, ScraperRequest} from './merge-metrics.ts';
import {reportGate, type StatusReport} from './report.ts';

export interface Reply {
	readonly status: number;
	readonly contentType: string;
	readonly chunks: readonly Buffer[];
	/** Methods that would be taken; with 405. */
	readonly allow?: string;
}

/** A request as far as it counts. `Host` is not here: nothing may depend on what a client says we are called. */
export interface Question {
	readonly method: string;
	/** Without the query. */
	readonly path: string;
	readonly scraper: ScraperRequest;
	/** The parsed JSON body of a command; read only when asked for. */
	readonly readInput: () => Promise<unknown>;
}

/** What a command is given, and gives back as JSON. */
export type Command = (input: unknown) => unknown;

export interface RouteDeps {
	readonly readiness: Readiness;
	readonly isStopping: () => boolean;
	readonly scrape: (request: ScraperRequest) => Promise<MetricsPage>;
	readonly report: () => StatusReport;
	readonly commands: ReadonlyMap<string, Command>;
}

const index = `onramp
/healthz/ready     200 when all gates are open, else 503 and the names of the closed ones
/livez             200 while the agent runs
/readyz            all gates as JSON
/readyz/GATE       one gate as JSON, 200 or 503
/stats/prometheus  metrics of the agent, Envoy and the application (also /metrics)
`;

/** Health and metrics: all that anyone on the network may ask. */
export async function answerPublic(question: Question, deps: RouteDeps): Promise<Reply> {
	const route = publicRoute(question, deps);
	if (!route) return text(404, 'not found\n');
	if (question.method !== 'GET' && question.method !== 'HEAD')
		return {...text(405, 'method not allowed\n'), allow: 'GET, HEAD'};
	return route();
}

function publicRoute({path, scraper}: Question, deps: RouteDeps): (() => Reply | Promise<Reply>) | undefined {
	switch (path) {
		case '/':
			return () => text(200, index);
		case '/healthz/ready':
			return () => replyReady(deps);
		case '/livez':
			return () => text(200, 'ok\n');
		case '/readyz':
			return () => replyGates(deps);
		case '/stats/prometheus':
		case '/metrics':
			return async () => ({status: 200, ...(await deps.scrape(scraper))});
	}
	if (!path.startsWith('/readyz/')) return undefined;
	const name = path.slice('/readyz/'.length);
	return () => replyGate(name, deps);
}

/** On the control socket: the above, the full report, and the commands. */
export async function answerControl(question: Question, deps: RouteDeps): Promise<Reply> {
	const {method, path} = question;
	const command = deps.commands.get(path.slice(1));
	if (command) {
		if (method !== 'POST') return {...text(405, 'method not allowed\n'), allow: 'POST'};
		return runCommand(command, question);
	}
	if (method === 'GET' && path === '/status') return json(200, deps.report());
	if (method === 'GET' && path === '/gates') return json(200, gates(deps));
	return answerPublic(question, deps);
}

async function runCommand(command: Command, {readInput}: Question): Promise<Reply> {
	try {
		return json(200, (await command(await readInput())) ?? {});
	} catch (error) {
		const {code, hint} = error instanceof AgentError ? error : {code: 'internal', hint: undefined};
		return json(500, {code, message: reasonOf(error), hint});
	}
}

function replyReady({readiness, isStopping}: RouteDeps): Reply {
	if (isStopping()) return text(503, 'stopping\n');
	const closed = readiness.states().filter(({isOpen}) => !isOpen);
	if (closed.length === 0) return text(200, 'ready\n');
	return text(503, closed.map(({name, reason}) => `${name}: ${reason}\n`).join(''));
}

function gates({readiness, isStopping}: RouteDeps) {
	return {ready: readiness.isReady && !isStopping(), stopping: isStopping(), gates: readiness.states().map(reportGate)};
}

function replyGates(deps: RouteDeps): Reply {
	const body = gates(deps);
	return json(body.ready ? 200 : 503, body);
}

function replyGate(name: string, {readiness}: RouteDeps): Reply {
	const state = readiness.states().find(gate => gate.name === name);
	if (!state) return json(404, {error: 'no such gate', gates: readiness.states().map(gate => gate.name)});
	return json(state.isOpen ? 200 : 503, reportGate(state));
}

export function text(status: number, body: string): Reply {
	return {status, contentType: textContentType.replace('version=0.0.4;', ''), chunks: [Buffer.from(body)]};
}

function json(status: number, body: unknown): Reply {
	return {status, contentType: 'application/json', chunks: [Buffer.from(`${JSON.stringify(body, undefined, 2)}\n`)]};
}
