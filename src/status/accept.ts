/**
 * What to ask the sources of merged metrics for. Their answers are put one behind the other, so each may only be asked
 * for a format that allows that: the text format from all, OpenMetrics from the application, which comes last.
 */
export const textFormat = 'text/plain;version=0.0.4';
export const textContentType = `${textFormat};charset=utf-8`;

const openMetrics = 'application/openmetrics-text';

/** At most nine choices: their weights are one digit. */
const mostChoices = 9;

interface Choice {
	readonly type: string;
	readonly parameters: readonly string[];
	readonly weight: number;
}

/** @param accept - the scraper's Accept header */
export function acceptFor(source: 'envoy' | 'application', accept: string | undefined): string {
	const choices = parseAccept(accept ?? '')
		.flatMap(choice => narrow(choice, source))
		.slice(0, mostChoices);
	if (choices.length === 0) return textFormat;
	return choices.map((choice, index) => `${choice};q=0.${choices.length - index}`).join(',');
}

/** In order of preference; what can't be understood or has weight 0 is left out. */
function parseAccept(accept: string): Choice[] {
	const choices = accept.split(',').map(parseChoice);
	return choices.filter(({type, weight}) => type.includes('/') && weight > 0).sort((a, b) => b.weight - a.weight);
}

function parseChoice(text: string): Choice {
	const [type = '', ...rest] = text.split(';').map(part => part.trim().toLowerCase());
	const weight = rest.find(part => part.startsWith('q='));
	const parameters = rest.filter(part => part !== '' && part !== weight);
	return {type, parameters, weight: weight === undefined ? 1 : Number(weight.slice(2)) || 0};
}

function narrow({type, parameters}: Choice, source: 'envoy' | 'application'): string[] {
	const whole = [type, ...parameters].join(';');
	switch (type) {
		case '*/*':
			return [textFormat];
		case 'text/*':
		case 'text/plain':
			return [whole];
		case 'application/*':
			return source === 'application' ? [`${openMetrics};version=0.0.1`] : [];
		case openMetrics:
			return source === 'application' ? [whole] : [];
		default:
			return [];
	}
}

/** Versions of OpenMetrics whose end mark and line format are known here. */
export function isOpenMetrics(contentType: string): boolean {
	const {type, parameters} = parseChoice(contentType);
	return type === openMetrics && parameters.some(part => part === 'version=0.0.1' || part === 'version=1.0.0');
}
